#include "network.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <system_error>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace shvit {
namespace {

constexpr int GROUP = 4;  // bytes that are multiplied at once; pixels have as many channels in memory
constexpr int QUERIES_AT_ONCE = 4;
constexpr int IDLE_TRIES = 200;  // of a helper to find a new job, before it sleeps

int halved(int side) { return (side + 1) / 2; }
Size halved(Size size) { return {halved(size.height), halved(size.width)}; }
// Channels in memory. Convolutions of the stem read three pixels as one row, so their maps have no wide padding.
int in_map(int channels) { return round_up(channels, BLOCK); }
int in_stem(int channels) { return round_up(channels, GROUP); }

// Bytes of a map with a border. The last window of a depthwise convolution may begin two pixels before the end, and
// kernels read four pixels.
size_t with_border(Size size, int channels) {
    return (size_t(size.height + 2) * (size.width + 2) + 4) * channels;
}

// Weights of a product, [outputs][taps][inputs].
Packed pack(
    const int8_t* weight, const float* scale, const float* shift, int outputs, int taps, int inputs, int zero) {
    const int channels = round_up(outputs, PANEL), padded = round_up(inputs, GROUP);
    const ptrdiff_t depth = ptrdiff_t(taps) * padded;
    Packed packed(channels * depth, channels);
    for (int n = 0; n < outputs; n++) {
        const int pair = n / (2 * PANEL) * 2 * PANEL, panels = channels - pair > PANEL ? 2 : 1;
        int32_t sum = 0;
        for (int tap = 0; tap < taps; tap++)
            for (int c = 0; c < inputs; c++) {
                const int8_t value = weight[(ptrdiff_t(n) * taps + tap) * inputs + c];
                const ptrdiff_t k = ptrdiff_t(tap) * padded + c;
                packed.weight[pair * depth + k / GROUP * panels * PANEL * GROUP + (n - pair) * GROUP + k % GROUP] = value;
                sum += value;
            }
        packed.start[n] = -zero * sum;
        packed.scale[n] = scale[n];
        packed.shift[n] = shift[n];
    }
    return packed;
}

// Weights of a depthwise convolution, [block][9][BLOCK].
Packed pack_depthwise(const Layer& layer) {
    const int channels = in_map(layer.outputs);
    Packed packed(size_t(channels) * 9, channels);
    for (int c = 0; c < layer.outputs; c++) {
        int32_t sum = 0;
        for (int tap = 0; tap < 9; tap++) {
            const int8_t value = layer.weight[c * 9 + tap];
            packed.weight[(ptrdiff_t(c / BLOCK) * 9 + tap) * BLOCK + c % BLOCK] = value;
            sum += value;
        }
        packed.start[c] = -layer.zero * sum;
        packed.scale[c] = layer.scale[c];
        packed.shift[c] = layer.shift[c];
    }
    return packed;
}

// The same for kernels that interleave the bytes of four pixels, [block][2 outputs][3 rows][4 registers][16][4]. Of two
// neighboring outputs, the window of the first begins at the first of the four pixels, the other one pixel later.
Packed interleave_depthwise(const Packed& natural) {
    const int channels = natural.channels;
    Packed packed(size_t(channels) * 2 * 3 * 4, channels);
    for (int i = 0; i < channels; i++) {
        const int block = i / BLOCK, q = i % BLOCK / 16, lane = i % 16 / 4, j = i % 4;
        const int in_block = 16 * lane + 4 * q + j, channel = block * BLOCK + in_block;
        packed.start[i] = natural.start[channel];
        packed.scale[i] = natural.scale[channel];
        packed.shift[i] = natural.shift[channel];
        for (int output = 0; output < 2; output++)
            for (int tap = 0; tap < 9; tap++) {
                const ptrdiff_t row = ((ptrdiff_t(block) * 2 + output) * 3 + tap / 3) * 4 + q;
                packed.weight[(row * 16 + i % 16) * 4 + output + tap % 3] =
                    natural.weight[(ptrdiff_t(block) * 9 + tap) * BLOCK + in_block];
            }
    }
    return packed;
}

// How often `Workspace::body` calls `Member::step` for a layer.
size_t steps_of(const Layer& layer) {
    return layer.kind == EXCITE ? 5 : layer.kind == ATTEND || layer.kind == CLASSIFY ? 3 : 1;
}

Layer prepare(const ShvitLayer& given, const Kernels& kernels) {
    Layer layer;
    static_cast<ShvitLayer&>(layer) = given;
    const auto pack_rows = [&](int outputs, int taps, int zero) {
        return pack(given.weight, given.scale, given.shift, outputs, taps, given.inputs, zero);
    };
    switch (given.kind) {
        case CONVOLVE:
            layer.product = pack_rows(given.outputs, 9, given.zero);
            break;
        case DEPTHWISE:
            layer.product = pack_depthwise(layer);
            if (kernels.interleaves) layer.product = interleave_depthwise(layer.product);
            break;
        case POINTWISE:
            layer.product = pack_rows(given.outputs, 1, given.zero);
            break;
        case ATTEND:
            layer.product = pack_rows(given.outputs, 1, 0);  // the norm subtracts the mean
            layer.moved = Memory<float>(layer.product.channels);
            for (int n = 0; n < given.outputs; n++) {
                int32_t sum = 0;
                for (int k = 0; k < given.inputs; k++) sum += given.weight[ptrdiff_t(n) * given.inputs + k];
                layer.moved[n] = given.scale[n] * float(sum);
            }
            break;
        case EXCITE:
            layer.product = pack_rows(given.hidden, 1, 0);
            layer.second = pack(given.weight2, given.scale2, given.shift2, given.inputs, 1, given.hidden, 0);
            break;
        case CLASSIFY:
            layer.product = pack_rows(given.outputs, 1, 0);
            break;
    }
    layer.weight = layer.weight2 = nullptr;  // these belong to the caller
    layer.scale = layer.shift = layer.scale2 = layer.shift2 = nullptr;
    return layer;
}

// A 1x1 convolution, or a matrix product.
Product product_of(const Packed& packed, const uint8_t* in, ptrdiff_t in_stride, int inputs, int rows, Share share) {
    Product p{};
    p.in = in;
    p.in_stride = in_stride;
    p.segments = 1;
    p.segment_groups = (inputs + GROUP - 1) / GROUP;
    p.weight = packed.weight.data();
    p.channels = p.written = packed.channels;
    p.start = packed.start.data();
    p.scale = packed.scale.data();
    p.shift = packed.shift.data();
    p.rows = rows;
    p.lines = 1;
    p.part = share.part;
    p.parts = share.parts;
    return p;
}

void write_floats(Product& p, float* out, ptrdiff_t stride) {
    p.out = out;
    p.out_stride = stride;
    p.kind = Output::floats;
}

// The product of means, whose high and low bytes are two rows, and weights.
float from_parts(const int32_t* sums, const Packed& packed, int n) {
    const int64_t whole = 256 * int64_t(sums[n]) + sums[packed.channels + n];
    return float(whole) * packed.scale[n] + packed.shift[n];
}

const Kernels* find_kernels(const char* wanted) {
    std::vector<const Kernels*> able;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512vnni")) able.push_back(&avx512vnni_kernels);
    if (__builtin_cpu_supports("avx2")) {
        unsigned a = 0, b = 0, c = 0, d = 0;
        if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1 << 4)) able.push_back(&avxvnni_kernels);
        able.push_back(&avx2_kernels);
    }
#elif defined(__aarch64__) && defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) able.push_back(&neon_kernels);
#elif defined(__aarch64__)
    able.push_back(&neon_kernels);  // all Macs have it
#endif
    able.push_back(&generic_kernels);
    for (const Kernels* kernels : able)
        if (!*wanted || !std::strcmp(kernels->name, wanted)) return kernels;
    return nullptr;
}

}  // namespace

Workspace::Workspace(const Network& network, int images, int height, int width, int threads)
    : network_(network), images_(images), threads_(threads), image_{height, width} {
    Size size = image_;
    std::vector<size_t> needed(network.slots);
    size_t bordered = 0, floats = 0, norms = 0, scratch = 0, sums = 0, means = 0, squeezed = 0;
    const auto need = [](size_t& needed, size_t count) { needed = std::max(needed, count); };
    for (const Layer& layer : network.layers) {
        sizes_.push_back(size);
        steps_count_ += steps_of(layer) * (layer.kind == CONVOLVE ? images : 1);
        const size_t across = layer.product.channels;
        int channels = in_map(layer.outputs);
        switch (layer.kind) {
            case CONVOLVE:
                stem_.emplace_back(with_border(size, in_stem(layer.inputs)));
                size = halved(size);
                break;
            case DEPTHWISE:
                need(bordered, with_border(size, BLOCK));
                if (layer.stride == 2) size = halved(size);
                break;
            case ATTEND:
                channels = in_map(layer.hidden);
                need(floats, size_t(images) * size.pixels() * across);
                need(norms, size_t(images) * 2 * across);
                need(scratch, size_t(16 + QUERIES_AT_ONCE) * round_up(size.pixels(), 16));
                break;
            case EXCITE:
                need(floats, size_t(images) * layer.second.channels);
                need(scratch, in_map(layer.inputs));
                need(squeezed, size_t(images) * in_map(layer.hidden));
                [[fallthrough]];
            case CLASSIFY:
                need(sums, size_t(images) * 2 * across);
                need(means, size_t(images) * 2 * in_map(layer.inputs));
                break;
        }
        if (layer.target >= 0) need(needed[layer.target], size_t(images) * size.pixels() * channels);
    }
    for (size_t bytes : needed) slots_.emplace_back(bytes);
    for (int i = 0; i < threads_; i++) scratch_.push_back({Memory<uint8_t>(bordered), Memory<float>(scratch)});
    floats_ = Memory<float>(floats);
    norms_ = Memory<float>(norms);
    sums_ = Memory<int32_t>(sums);
    means_ = Memory<uint8_t>(means);
    squeezed_ = Memory<uint8_t>(squeezed);
    for (int i = 0; i < (height + 2) * (width + 2); i++)
        std::copy(network.border.begin(), network.border.end(), stem_[0].data() + ptrdiff_t(i) * GROUP);
    if (threads_ == 1) return;
    steps_.reset(new Step[steps_count_ + images]);  // reading an image is a step, too
    steps_count_ += images;
    try {
        for (int i = 1; i < threads; i++) helpers_.emplace_back([this, i] { help(i); });
    } catch (const std::system_error&) {  // the system allows no more threads
    }
}

Workspace::~Workspace() {
    if (getpid() != process_) {  // a fork has no helpers, and one may have held the mutex
        for (std::thread& helper : helpers_) helper.detach();
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    ready_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
}

void Workspace::run(const uint8_t* pixels, int images, bool channels_last, float* out, double* seconds) {
    const int classes = network_.layers.back().outputs;
    for (int first = 0; first < images; first += images_) {
        const uint8_t* in = pixels + ptrdiff_t(first) * 3 * image_.pixels();
        const Job job{
            job_.run + 1, in, std::min(images_, images - first), channels_last, out + ptrdiff_t(first) * classes, seconds};
        const bool helped = threads_ > 1 && getpid() == process_;
        if (helped) start(job);
        run_as({steps_.get(), job.run, 0, helped ? threads_ : 1}, job);
    }
}

// Wake the helpers. Those that are still busy with the job before notice that it is over.
void Workspace::start(const Job& job) {
    for (size_t i = 0; i < steps_count_; i++) {
        steps_[i].done.store(0, std::memory_order_relaxed);
        steps_[i].next.store(job.run << 32, std::memory_order_release);
    }
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        job_ = job;
    }
    started_.store(job.run);
    ready_.notify_all();
}

void Workspace::help(int thread) {
    uint64_t last = 0;
    while (true) {
        for (int tries = 0; tries < IDLE_TRIES && started_.load() == last; tries++) std::this_thread::yield();
        Job job;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            ready_.wait(lock, [&] { return stop_ || job_.run != last; });
            if (stop_) return;
            job = job_;
        }
        last = job.run;
        run_as({steps_.get(), job.run, thread, threads_}, job);
    }
}

void Workspace::run_as(Member member, const Job& job) {
    using Clock = std::chrono::steady_clock;
    Clock::time_point before = Clock::now();
    const auto measure = [&](size_t index) {
        if (!job.seconds || !member.first()) return;
        const Clock::time_point now = Clock::now();
        job.seconds[index] += std::chrono::duration<double>(now - before).count();
        before = now;
    };
    for (int image = 0; image < job.images; image++) {
        const uint8_t* in = job.pixels + ptrdiff_t(image) * 3 * image_.pixels();
        if (!member.step([&](Share share) { read(in, job.channels_last, share); })) return;
        for (size_t i = 0; i < stem_.size(); i++) {
            if (!member.step([&](Share share) { stem(i, image, share); })) return;
            measure(i);
        }
    }
    for (size_t i = stem_.size(); i < network_.layers.size(); i++) {
        if (!body(network_.layers[i], sizes_[i], job.images, job.out, member)) return;
        measure(i);
    }
}

// Write the pixels of an image inside their border.
void Workspace::read(const uint8_t* pixels, bool channels_last, Share share) {
    const ptrdiff_t plane = image_.pixels(), line = ptrdiff_t(image_.width + 2) * GROUP;
    for (int y = share.begin(image_.height); y < share.end(image_.height); y++) {
        uint8_t* out = stem_[0].data() + (y + 1) * line + GROUP;
        const uint8_t* in = pixels + ptrdiff_t(y) * image_.width * (channels_last ? 3 : 1);
        if (channels_last)
            network_.kernels->widen_pixels(in, image_.width, out);
        else
            network_.kernels->interleave_planes(in, in + plane, in + 2 * plane, image_.width, out);
    }
}

void Workspace::stem(size_t index, int image, Share share) {
    const Layer& layer = network_.layers[index];
    const Size size = sizes_[index], out = halved(size);
    const int channels = in_stem(layer.inputs);
    Product p = product_of(layer.product, stem_[index].data(), 2 * channels, 3 * channels, out.width, share);
    p.segments = 3;
    p.segment_stride = ptrdiff_t(size.width + 2) * channels;
    p.lines = out.height;
    p.in_line = 2 * p.segment_stride;
    p.kind = Output::bytes;
    if (index + 1 < stem_.size()) {
        p.out_stride = p.written = in_stem(layer.outputs);
        p.out_line = (out.width + 2) * p.out_stride;
        p.out = stem_[index + 1].data() + p.out_line + p.out_stride;
    } else {
        p.out_stride = in_map(layer.outputs);
        p.out_line = out.width * p.out_stride;
        p.out = slots_[layer.target].data() + ptrdiff_t(image) * out.height * p.out_line;
    }
    network_.kernels->product(p);
}

bool Workspace::body(const Layer& layer, Size size, int images, float* out, Member& member) {
    switch (layer.kind) {
        case DEPTHWISE:
            return member.step([&](Share share) { depthwise(layer, images, size, share); });
        case POINTWISE:
            return member.step([&](Share share) { pointwise(layer, images, size, share); });
        case ATTEND:
            return attend(layer, images, size, member);
        case EXCITE:
            return excite(layer, images, size, member);
        case CLASSIFY:
            return classify(layer, images, size, out, member);
    }
    return false;
}

void Workspace::depthwise(const Layer& layer, int images, Size size, Share share) {
    const Packed& packed = layer.product;
    const int channels = in_map(layer.outputs), blocks = channels / BLOCK;
    const ptrdiff_t weights = BLOCK * (network_.kernels->interleaves ? 24 : 9);
    const Size out = layer.stride == 2 ? halved(size) : size;
    const ptrdiff_t line = ptrdiff_t(size.width + 2) * BLOCK;
    uint8_t* bordered = scratch_[share.thread].bordered.data();
    std::memset(bordered, layer.zero, with_border(size, BLOCK));
    for (int i = share.begin(images * blocks); i < share.end(images * blocks); i++) {
        const int image = i / blocks, block = i % blocks;
        const uint8_t* in = slots_[layer.source].data() + ptrdiff_t(image) * size.pixels() * channels + block * BLOCK;
        for (int y = 0; y < size.height; y++)
            for (int x = 0; x < size.width; x++, in += channels)
                std::memcpy(bordered + (y + 1) * line + (x + 1) * BLOCK, in, BLOCK);
        network_.kernels->depthwise(
            {bordered, line, layer.stride, out.height, out.width, packed.weight.data() + block * weights,
             packed.start.data() + block * BLOCK, packed.scale.data() + block * BLOCK,
             packed.shift.data() + block * BLOCK,
             slots_[layer.target].data() + ptrdiff_t(image) * out.pixels() * channels + block * BLOCK, channels});
    }
}

void Workspace::pointwise(const Layer& layer, int images, Size size, Share share) {
    Product p = product_of(
        layer.product, slots_[layer.source].data(), in_map(layer.inputs), layer.inputs, images * size.pixels(), share);
    p.out = slots_[layer.target].data();
    p.out_stride = in_map(layer.outputs);
    p.kind = Output::bytes;
    if (layer.residual >= 0) {
        p.residual = slots_[layer.residual].data();
        p.residual_stride = p.out_stride;
        p.residual_scale = layer.residual_scale;
    }
    network_.kernels->product(p);
}

bool Workspace::attend(const Layer& layer, int images, Size size, Member& member) {
    const int channels = in_map(layer.hidden), across = layer.product.channels, tokens = size.pixels();
    const int groups = (tokens + QUERIES_AT_ONCE - 1) / QUERIES_AT_ONCE;
    const auto in = [&](int image) { return slots_[layer.source].data() + ptrdiff_t(image) * tokens * channels; };
    const auto qkv = [&](int image) { return floats_.data() + ptrdiff_t(image) * tokens * across; };
    const auto norm = [&](int image) { return norms_.data() + ptrdiff_t(image) * 2 * across; };
    return member.step([&](Share share) {
        for (int image = share.begin(images); image < share.end(images); image++)
            normalize(layer, in(image), size, norm(image), norm(image) + across);
    }) &&
    member.step([&](Share share) {
        for (int image = 0; image < images; image++) {
            Product p = product_of(layer.product, in(image), channels, layer.inputs, tokens, share);
            p.scale = norm(image);
            p.shift = norm(image) + across;
            write_floats(p, qkv(image), across);
            network_.kernels->product(p);
        }
    }) &&
    member.step([&](Share share) {
        const int begin = share.begin(images * groups), end = share.end(images * groups);
        for (int image = begin / groups; image * groups < end; image++) {
            const int first = std::max(begin - image * groups, 0) * QUERIES_AT_ONCE;
            const int last = std::min(std::min(end - image * groups, groups) * QUERIES_AT_ONCE, tokens);
            network_.kernels->attend(
                {qkv(image), tokens, across, layer.inputs, first, last, in(image),
                 slots_[layer.target].data() + ptrdiff_t(image) * tokens * channels, channels, layer.out_scale,
                 uint8_t(layer.zero), scratch_[share.thread].floats.data()});
        }
    });
}

// GroupNorm of the attended channels is a factor and a summand that all of them share: part of the product's scale and
// shift.
void Workspace::normalize(const Layer& layer, const uint8_t* in, Size size, float* scale, float* shift) {
    int64_t sum, squares;
    network_.kernels->moments(in, size.pixels(), in_map(layer.hidden), layer.inputs, &sum, &squares);
    const double count = double(size.pixels()) * layer.inputs, step = layer.in_step;
    const double mean = double(sum) / count, variance = double(squares) / count - mean * mean;
    const double factor = step / std::sqrt(step * step * variance + double(layer.epsilon));
    const float by = float(factor), less = float(factor * mean);
    for (int n = 0; n < layer.product.channels; n++) {
        scale[n] = by * layer.product.scale[n];
        shift[n] = layer.product.shift[n] - less * layer.moved[n];
    }
}

// The mean of each channel in 1/256 of a step, as two rows of bytes for each image: the high bytes, then the low bytes.
void Workspace::means(const uint8_t* in, int images, Size size, int channels, Share share) {
    const float factor = 256.0f / float(size.pixels());
    const int blocks = channels / BLOCK;
    for (int i = share.begin(images * blocks); i < share.end(images * blocks); i++) {
        const int image = i / blocks, first = i % blocks * BLOCK;
        alignas(64) int32_t sums[BLOCK];
        const uint8_t* map = in + ptrdiff_t(image) * size.pixels() * channels + first;
        network_.kernels->pool(map, size.pixels(), channels, sums);
        uint8_t* out = means_.data() + ptrdiff_t(image) * 2 * channels + first;
        for (int c = 0; c < BLOCK; c++) {
            const int32_t value = int32_t(std::nearbyint(float(sums[c]) * factor));
            out[c] = uint8_t(value >> 8);
            out[channels + c] = uint8_t(value);
        }
    }
}

bool Workspace::excite(const Layer& layer, int images, Size size, Member& member) {
    const Kernels& kernels = *network_.kernels;
    const int channels = in_map(layer.inputs), hidden = in_map(layer.hidden), across = layer.product.channels;
    const int gates = layer.second.channels;
    const uint8_t* in = slots_[layer.source].data();
    return member.step([&](Share share) { means(in, images, size, channels, share); }) &&
    member.step([&](Share share) {
        Product p = product_of(layer.product, means_.data(), channels, layer.inputs, 2 * images, share);
        p.out = sums_.data();
        p.out_stride = across;
        p.kind = Output::sums;
        kernels.product(p);
    }) &&
    member.step([&](Share share) {
        for (int image = share.begin(images); image < share.end(images); image++)
            for (int n = 0; n < layer.hidden; n++) {
                const float value = from_parts(sums_.data() + image * 2 * across, layer.product, n);
                squeezed_[image * hidden + n] = uint8_t(std::nearbyint(std::min(std::max(value, 0.0f), 255.0f)));
            }
    }) &&
    member.step([&](Share share) {
        Product p = product_of(layer.second, squeezed_.data(), hidden, layer.hidden, images, share);
        write_floats(p, floats_.data(), gates);
        kernels.product(p);
    }) &&
    member.step([&](Share share) {
        const int lines = images * size.height, begin = share.begin(lines), end = share.end(lines);
        float* scaled = scratch_[share.thread].floats.data();
        for (int i = begin; i < end; i++) {
            const int image = i / size.height;
            if (i == begin || i % size.height == 0)
                kernels.sigmoid(floats_.data() + image * gates, gates, layer.out_scale, scaled);
            const ptrdiff_t line = ptrdiff_t(i) * size.width * channels;
            kernels.gate(in + line, size.width, channels, scaled, slots_[layer.target].data() + line);
        }
    });
}

bool Workspace::classify(const Layer& layer, int images, Size size, float* out, Member& member) {
    const int channels = in_map(layer.inputs), across = layer.product.channels;
    return member.step([&](Share share) { means(slots_[layer.source].data(), images, size, channels, share); }) &&
    member.step([&](Share share) {
        Product p = product_of(layer.product, means_.data(), channels, layer.inputs, 2 * images, share);
        p.out = sums_.data();
        p.out_stride = across;
        p.kind = Output::sums;
        network_.kernels->product(p);
    }) &&
    member.step([&](Share share) {
        for (int image = share.begin(images); image < share.end(images); image++)
            for (int n = 0; n < layer.outputs; n++)
                out[ptrdiff_t(image) * layer.outputs + n] =
                    from_parts(sums_.data() + ptrdiff_t(image) * 2 * across, layer.product, n);
    });
}

}  // namespace shvit

extern "C" {

#ifdef _WIN32
#define SHVIT_API __declspec(dllexport)
#else
#define SHVIT_API __attribute__((visibility("default")))
#endif

// Name of the fastest instruction set of this processor, or of the wanted one. Null: not available.
SHVIT_API const char* shvit_set(const char* wanted) {
    const shvit::Kernels* kernels = shvit::find_kernels(wanted);
    return kernels ? kernels->name : nullptr;
}

// Null: the instruction set is not available, or there is too little memory.
SHVIT_API void* shvit_network(
    const ShvitLayer* layers, int count, int slots, const uint8_t* border, const char* set) {
    const shvit::Kernels* kernels = shvit::find_kernels(set);
    if (!kernels) return nullptr;
    try {
        auto network = std::make_unique<shvit::Network>();
        network->kernels = kernels;
        network->border = {border[0], border[1], border[2], 0};
        network->slots = slots;
        for (int i = 0; i < count; i++) network->layers.push_back(shvit::prepare(layers[i], *kernels));
        return network.release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

SHVIT_API void shvit_free_network(void* network) { delete static_cast<shvit::Network*>(network); }

// Null: there is too little memory.
SHVIT_API void* shvit_workspace(const void* network, int images, int height, int width, int threads) {
    try {
        return new shvit::Workspace(*static_cast<const shvit::Network*>(network), images, height, width, threads);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

SHVIT_API void shvit_free_workspace(void* workspace) { delete static_cast<shvit::Workspace*>(workspace); }

SHVIT_API void shvit_run(
    void* workspace, const uint8_t* pixels, int images, int channels_last, float* out, double* seconds) {
    static_cast<shvit::Workspace*>(workspace)->run(pixels, images, channels_last != 0, out, seconds);
}
}
