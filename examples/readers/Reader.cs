// Labels images: dotnet run [MODEL [IMAGE ...]]. Not run by shvit's tests.
// Install: dotnet add package Microsoft.ML.OnnxRuntime; dotnet add package SixLabors.ImageSharp

using System.Text.Json;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;
using SixLabors.ImageSharp;
using SixLabors.ImageSharp.PixelFormats;
using SixLabors.ImageSharp.Processing;

var model = args.Length > 0 ? args[0] : "best.onnx";
using var session = new InferenceSession(model);
using var facts = JsonDocument.Parse(session.ModelMetadata.CustomMetadataMap["shvit"]);
var sample = facts.RootElement.GetProperty("sample");

float[] Run(string path)
{
    using var image = Image.Load<Rgba32>(path);
    image.Mutate(one => one.AutoOrient().BackgroundColor(Color.White)); // transparent pixels are blended with white
    using var rgb = image.CloneAs<Rgb24>();
    var pixels = new byte[3 * rgb.Width * rgb.Height];
    rgb.CopyPixelDataTo(pixels);
    var tensor = new DenseTensor<byte>(pixels, new[] { rgb.Height, rgb.Width, 3 });
    using var outputs = session.Run(new[] { NamedOnnxValue.CreateFromTensor("image", tensor) });
    return outputs.Single(output => output.Name == "scores").AsEnumerable<float>().ToArray();
}

var known = Run(Path.Combine(Path.GetDirectoryName(model) ?? "", sample.GetProperty("image").GetString()!));
var expected = sample.GetProperty("classes").EnumerateArray().Zip(sample.GetProperty("scores").EnumerateArray());
var right = expected.All(pair => Math.Abs(known[pair.First.GetInt32()] - pair.Second.GetSingle()) <= 0.01);
Console.WriteLine(right ? "self-check passed" : $"self-check failed: {model} has other scores than at its export");
if (!right) return 1;
foreach (var path in args.Skip(1))
{
    var scores = Run(path);
    var best = Array.IndexOf(scores, scores.Max());
    Console.WriteLine($"{path}: {facts.RootElement.GetProperty("classes")[best]} {scores[best]:F4}");
}
return 0;
