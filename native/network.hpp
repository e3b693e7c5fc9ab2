// A quantized network as a list of layers, and its memory for some images of one size.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels.hpp"

extern "C" {

enum LayerKind : int32_t { CONVOLVE, DEPTHWISE, POINTWISE, ATTEND, EXCITE, CLASSIFY };

// One layer, as given by Python (quantization.py). The arrays are copied.
struct ShvitLayer {
    int32_t kind;
    int32_t source, target;    // slots of memory for maps
    int32_t residual;          // slot of a map that is added, or -1
    int32_t inputs, outputs;   // channels; for ATTEND, `inputs` are the attended ones
    int32_t hidden;            // EXCITE: channels between its two products; ATTEND: all channels of the map
    int32_t stride;            // DEPTHWISE
    int32_t zero;              // zero point of the input
    float in_step;             // ATTEND: value of a step of the input
    float out_scale;           // ATTEND: 1 / value of a step of the result; EXCITE: step of the input / of the output
    float residual_scale;      // step of the residual / step of the output
    float epsilon;             // ATTEND
    const int8_t* weight;      // [outputs][inputs]; CONVOLVE: [outputs][3][3][inputs], DEPTHWISE: [outputs][3][3]
    const float* scale;        // of each output
    const float* shift;
    const int8_t* weight2;     // EXCITE: the second product, [outputs][hidden]
    const float* scale2;
    const float* shift2;
};

}

namespace shvit {

template <typename T>
class Memory {  // initially 0, and aligned to cache lines
public:
    explicit Memory(size_t count = 0) : store_(new uint8_t[count * sizeof(T) + SLACK + 64]()) {}
    T* data() const { return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(store_.get()) + 63) / 64 * 64); }
    T& operator[](ptrdiff_t index) const { return data()[index]; }

private:
    static constexpr size_t SLACK = 256;  // kernels read and write whole registers
    std::unique_ptr<uint8_t[]> store_;
};

struct Packed {  // weights as the kernels read them
    explicit Packed(size_t weights = 0, int channels = 0)
        : weight(weights), start(channels), scale(channels), shift(channels), channels(channels) {}
    Memory<int8_t> weight;
    Memory<int32_t> start;
    Memory<float> scale, shift;
    int channels;  // rounded up
};

struct Layer : ShvitLayer {
    Packed product, second;
    Memory<float> moved;  // ATTEND: the scaled sum of the weights of each output
};

struct Network {
    const Kernels* kernels;
    std::vector<Layer> layers;
    std::vector<uint8_t> border;  // the pixel around images
    int slots;
};

struct Size {
    int height, width;
    int pixels() const { return height * width; }
};

// One of the equal parts of a step, and the thread that computes it.
struct Share {
    int part, parts, thread;
    int begin(int count) const { return int(int64_t(count) * part / parts); }
    int end(int count) const { return int(int64_t(count) * (part + 1) / parts); }
};

// The progress of all threads in one step of a run.
struct alignas(64) Step {
    std::atomic<uint64_t> next{0};  // the number of the run, then the next part in the lower 32 bits
    std::atomic<int> done{0};
};

// A thread among those that compute the same steps in the same order. The parts of a step are taken by whoever is there:
// a thread that the system has paused holds up the others only if it has a part in hand. A thread that comes when the
// run is over finds no parts left, or those of another run.
class Member {
public:
    Member(Step* steps, uint64_t run, int thread, int threads)
        : steps_(steps), run_(run), thread_(thread), threads_(threads) {}
    bool first() const { return thread_ == 0; }

    // Compute parts of the next step, and wait until all parts are done. Returns whether the run goes on.
    template <typename Body>
    bool step(const Body& body) {
        if (threads_ == 1) {
            body(Share{0, 1, 0});
            return true;
        }
        const int parts = PARTS * threads_;
        Step& step = *steps_++;
        for (int part; (part = take(step, parts)) >= 0;) {
            body(Share{part, parts, thread_});
            step.done.fetch_add(1);
        }
        for (int spins = 0; step.done.load() < parts; spins++) {
            if (step.next.load() >> 32 != run_) return false;
            if (spins > SPINS) std::this_thread::yield();
        }
        return step.next.load() >> 32 == run_;
    }

private:
    static constexpr int PARTS = 4, SPINS = 2000;  // of a step for each thread; before another thread may run

    int take(Step& step, int parts) {  // -1: there are none left
        uint64_t next = step.next.load();
        while (next >> 32 == run_ && int(next & 0xffffffff) < parts)
            if (step.next.compare_exchange_weak(next, next + 1)) return int(next & 0xffffffff);
        return -1;
    }

    Step* steps_;
    uint64_t run_;
    int thread_, threads_;
};

class Workspace {
public:
    // For at most `images` at once.
    Workspace(const Network& network, int images, int height, int width, int threads);
    ~Workspace();
    // Any number of images. Adds the time of each layer to `seconds`, unless it is null.
    void run(const uint8_t* pixels, int images, bool channels_last, float* out, double* seconds);

private:
    struct Job {  // some images that go through the network together
        uint64_t run;
        const uint8_t* pixels;
        int images;
        bool channels_last;
        float* out;
        double* seconds;
    };
    struct Scratch {  // of one thread
        Memory<uint8_t> bordered;  // a block of the input of a depthwise convolution
        Memory<float> floats;  // keys and scores of attention, or gates
    };

    void start(const Job& job);
    void help(int thread);
    void run_as(Member member, const Job& job);
    void read(const uint8_t* pixels, bool channels_last, Share share);
    void stem(size_t index, int image, Share share);
    bool body(const Layer& layer, Size size, int images, float* out, Member& member);
    void depthwise(const Layer& layer, int images, Size size, Share share);
    void pointwise(const Layer& layer, int images, Size size, Share share);
    bool attend(const Layer& layer, int images, Size size, Member& member);
    void normalize(const Layer& layer, const uint8_t* in, Size size, float* scale, float* shift);
    bool excite(const Layer& layer, int images, Size size, Member& member);
    bool classify(const Layer& layer, int images, Size size, float* out, Member& member);
    void means(const uint8_t* in, int images, Size size, int channels, Share share);

    const Network& network_;
    int images_, threads_;
    Size image_;
    std::vector<Size> sizes_;            // of the input of each layer
    std::vector<Memory<uint8_t>> stem_;  // pixels, then the maps between the convolutions of the stem, with borders
    std::vector<Memory<uint8_t>> slots_;
    std::vector<Scratch> scratch_;
    Memory<float> floats_;               // queries, keys and values; gates
    Memory<float> norms_;                // scale and shift of each image
    Memory<int32_t> sums_;
    Memory<uint8_t> means_, squeezed_;
    size_t steps_count_ = 0;
    std::unique_ptr<Step[]> steps_;
    // Helpers sleep until there is a job. The thread that calls `run` is not among them.
    std::mutex mutex_;
    std::condition_variable ready_;
    Job job_{};
    std::atomic<uint64_t> started_{0};  // job_.run
    bool stop_ = false;
    std::vector<std::thread> helpers_;
    const pid_t process_ = getpid();
};

}  // namespace shvit
