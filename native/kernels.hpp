// The kernels of the network, once for each instruction set. All sets return the same bits.
//
// Maps are uint8, channels last. Weights are int8, packed in the order in which they are read: in pairs of panels of 16
// output channels, [pair][k / 4][panel][16][4], with zeros beyond the last channel. The last pair may be one panel. Products are summed in int32, which is exact. Floating-point operations are elementwise
// or in a fixed order, and never contracted to fused multiply-adds, so that reference.py can repeat them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shvit {

constexpr int PANEL = 16;  // output channels of a panel of packed weights
constexpr int BLOCK = 64;  // channels of a depthwise block. The number of channels in memory is a multiple of it.

enum class Output { bytes, floats, sums };

// out[m][n] = round(sums * scale[n] + shift[n] + residual[m][n] * residual_scale), where
// sums = start[n] + the sum over all segments and k of in[m][segment][k] * weight[n][segment][k].
// A segment is one row of a convolution's window; 1x1 convolutions have one segment.
struct Product {
    const uint8_t* in;
    ptrdiff_t in_stride;       // bytes from one row of `in` to the next
    int segments;
    ptrdiff_t segment_stride;  // bytes from one segment to the next
    int segment_groups;        // groups of 4 bytes in a segment
    const int8_t* weight;      // packed
    int channels;              // a multiple of PANEL
    int written;               // channels that are written as bytes, more than `channels` - PANEL
    const int32_t* start;
    const float* scale;        // not used for `sums`
    const float* shift;
    const uint8_t* residual;   // may be null
    ptrdiff_t residual_stride;
    float residual_scale;
    void* out;
    ptrdiff_t out_stride;      // elements from one row of `out` to the next
    Output kind;
    int rows;
    // Rows come in lines, as do the pixels of a map with borders. 1x1 convolutions have one line.
    int lines;
    ptrdiff_t in_line, out_line;  // bytes and elements from one line to the next
    int part, parts;              // the share of a thread
};

// Depthwise 3x3 convolution of BLOCK channels of a map that has a border of one pixel.
struct Depthwise {
    const uint8_t* in;      // [lines][width][BLOCK], with border
    ptrdiff_t in_line;      // bytes from one line of pixels to the next
    int stride;
    int height, width;      // of the output
    const int8_t* weight;   // [9][BLOCK], or for sets that interleave as by `interleave_depthwise`
    const int32_t* start;   // these three in the same order of channels
    const float* scale;
    const float* shift;
    uint8_t* out;
    ptrdiff_t out_stride;   // bytes from one pixel to the next
};

// Attention of some queries of one image. A token has its query, key and value in one row.
struct Attention {
    const float* qkv;       // [tokens][stride]: 16 queries, 16 keys, `attended` values
    int tokens, stride, attended;
    int first, end;         // queries
    const uint8_t* in;      // [tokens][channels]; the channels from `attended` on are passed
    uint8_t* out;           // [tokens][channels]: ReLU of attention's result, then ReLU of the passed channels
    int channels;
    float out_scale;        // 1 / step of the result
    uint8_t zero;           // zero point of `in`
    float* scratch;         // (16 + 4) * (tokens rounded up to 16) floats
};

struct Kernels {
    const char* name;
    bool interleaves;  // whether depthwise weights are ordered by `interleave_depthwise`
    void (*product)(const Product&);
    void (*depthwise)(const Depthwise&);
    void (*attend)(const Attention&);
    // Pixels of four channels, from three planes or from pixels of three channels.
    void (*interleave_planes)(
        const uint8_t* red, const uint8_t* green, const uint8_t* blue, int pixels, uint8_t* out);
    void (*widen_pixels)(const uint8_t* in, int pixels, uint8_t* out);
    // sum[c] over the pixels of BLOCK channels of a map.
    void (*pool)(const uint8_t* in, int pixels, ptrdiff_t stride, int32_t* sum);
    // Sum of all values, and of their squares, in the first `channels` channels of a map.
    void (*moments)(const uint8_t* in, int pixels, ptrdiff_t stride, int channels, int64_t* sum, int64_t* squares);
    // out = round(in * factor[c])
    void (*gate)(const uint8_t* in, int pixels, int channels, const float* factor, uint8_t* out);
    // out = 1 / (1 + exp(-in)) * scale
    void (*sigmoid)(const float* in, int count, float scale, float* out);
};

extern const Kernels generic_kernels;
#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels avx2_kernels, avxvnni_kernels, avx512vnni_kernels;
#elif defined(__aarch64__)
extern const Kernels neon_kernels;
#endif

static inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace shvit
