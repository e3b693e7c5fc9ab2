// Labels images: reader [MODEL [IMAGE ...]]. Needs ONNX Runtime, nlohmann/json and stb_image.
#include <onnxruntime_cxx_api.h>
#include <nlohmann/json.hpp>
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>
#include <filesystem>
#include <iostream>
int main(int argc, char** argv) try {
    std::filesystem::path model = argc > 1 ? argv[1] : "best.onnx";
    Ort::Env env;
    Ort::Session session(env, model.c_str(), Ort::SessionOptions());
    Ort::AllocatorWithDefaultOptions cpu;
    auto facts = nlohmann::json::parse(session.GetModelMetadata().LookupCustomMetadataMapAllocated("shvit", cpu).get());
    auto run = [&](const std::string& path) {  // stb_image does not apply the EXIF orientation
        int width, height, channels;
        std::unique_ptr<stbi_uc[], decltype(&free)> rgba(stbi_load(path.c_str(), &width, &height, &channels, 4), free);
        if (!rgba || stbi_is_16_bit(path.c_str())) throw std::runtime_error(path + ": not an image with 8-bit values");
        std::vector<uint8_t> pixels(3 * width * height);
        for (size_t i = 0; i < pixels.size(); i++)  // transparent pixels are blended with white
            pixels[i] = 255 - (255 - rgba[i / 3 * 4 + i % 3]) * rgba[i / 3 * 4 + 3] / 255;
        const char* names[] = {"image", "scores"};
        int64_t shape[] = {height, width, 3};
        auto image = Ort::Value::CreateTensor<uint8_t>(cpu.GetInfo(), pixels.data(), pixels.size(), shape, 3);
        auto found = session.Run({}, names, &image, 1, names + 1, 1);
        const float* scores = found[0].GetTensorData<float>();
        return std::vector<float>(scores, scores + facts["classes"].size());
    };
    auto sample = facts["sample"];
    auto known = run((model.parent_path() / sample["image"]).string());
    for (size_t i = 0; i < sample["scores"].size(); i++)
        if (!(std::abs(known[sample["classes"][i]] - sample["scores"][i].get<float>()) <= 0.01))
            throw std::runtime_error("self-check failed: " + model.string() + " has other scores than at its export");
    std::cout << "self-check passed\n";
    for (int i = 2; i < argc; i++) {
        auto scores = run(argv[i]);
        auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();
        std::cout << argv[i] << ": " << facts["classes"][best].get<std::string>() << " " << scores[best] << "\n";
    }
} catch (const std::exception& error) { std::cerr << error.what() << "\n"; return 1; }
