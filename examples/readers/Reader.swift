// Labels images on a Mac: swift Reader.swift [MODEL [IMAGE ...]]. Not run by shvit's tests.
import CoreML
import ImageIO

func fail(_ message: String) -> Never { print(message); exit(1) }
let model = URL(fileURLWithPath: CommandLine.arguments.dropFirst().first ?? "best.mlpackage")
let network = try MLModel(contentsOf: MLModel.compileModel(at: model))
let metadata = network.modelDescription.metadata[.creatorDefinedKey] as! [String: String]
let facts = try JSONSerialization.jsonObject(with: Data(metadata["shvit"]!.utf8)) as! [String: Any]
let (sample, classes) = (facts["sample"] as! [String: Any], facts["classes"] as! [String])
let takes = network.modelDescription.inputDescriptionsByName["image"]!.imageConstraint!

func run(_ url: URL) throws -> [Double] { // the EXIF orientation is not applied
    guard let source = CGImageSourceCreateWithURL(url as CFURL, nil),
        let image = CGImageSourceCreateImageAtIndex(source, 0, nil) else { fail("\(url.path): cannot be read") }
    let (side, all) = (takes.pixelsWide, CGRect(x: 0, y: 0, width: takes.pixelsWide, height: takes.pixelsHigh))
    if image.width != side || image.height != side {
        fail("\(url.path): resize it to \(side) x \(side) pixels, or export with --format onnx --end-to-end")
    }
    let rgb = CGContext(data: nil, width: side, height: side, bitsPerComponent: 8, bytesPerRow: 0,
        space: CGColorSpace(name: CGColorSpace.sRGB)!, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)!
    rgb.setFillColor(CGColor(gray: 1, alpha: 1)) // transparent pixels are blended with white
    rgb.fill(all)
    rgb.draw(image, in: all)
    let value = try MLFeatureValue(cgImage: rgb.makeImage()!, constraint: takes, options: nil)
    let found = try network.prediction(from: MLDictionaryFeatureProvider(dictionary: ["image": value]))
    let logits = found.featureValue(for: "logits")!.multiArrayValue!
    let powers = (0..<logits.count).map { exp(logits[$0].doubleValue) }
    return powers.map { $0 / powers.reduce(0, +) }
}

let known = try run(model.deletingLastPathComponent().appendingPathComponent(sample["image"] as! String))
for (number, score) in zip(sample["classes"] as! [Int], sample["scores"] as! [Double])
    where !(abs(known[number] - score) <= 0.01) { fail("self-check failed: other scores than at the export") }
print("self-check passed")
for path in CommandLine.arguments.dropFirst(2) {
    let (best, score) = try run(URL(fileURLWithPath: path)).enumerated().max { $0.element < $1.element }!
    print("\(path): \(classes[best]) \(score)")
}
