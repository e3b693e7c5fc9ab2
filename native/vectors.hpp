// Vectors of 16 values, for which compilers use one or more registers of any instruction set.
#pragma once

#include "kernels.hpp"
#include "unroll.hpp"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace shvit {
namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

template <typename Vector>
inline Vector load(const void* from) {
    Vector vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

template <typename Vector>
inline void store(void* to, Vector vector) {
    __builtin_memcpy(to, &vector, sizeof vector);
}

// Compilers convert between these element by element, unless told otherwise.
inline Ints widened(Bytes bytes) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu8_epi32((__m128i)bytes);
#elif defined(__AVX2__)
    const __m256i parts[2] = {
        _mm256_cvtepu8_epi32((__m128i)bytes), _mm256_cvtepu8_epi32(_mm_srli_si128((__m128i)bytes, 8))};
    return load<Ints>(parts);
#else
    return __builtin_convertvector(bytes, Ints);
#endif
}

inline Ints sign_extended(Bytes bytes) { return (widened(bytes) ^ 128) - 128; }

inline Bytes narrowed(Ints ints) {  // of values from 0 to 255
#if defined(__AVX512F__)
    return (Bytes)_mm512_cvtepi32_epi8((__m512i)ints);
#elif defined(__AVX2__)
    const __m256i low = load<__m256i>(&ints), high = load<__m256i>(reinterpret_cast<const char*>(&ints) + 32);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0b11011000);
    return (Bytes)_mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#else
    return __builtin_convertvector(ints, Bytes);
#endif
}

inline Floats floats(Ints ints) { return __builtin_convertvector(ints, Floats); }

inline Floats at_least(Floats x, float low) { return x < low ? Floats{} + low : x; }
inline Floats at_most(Floats x, float high) { return x > high ? Floats{} + high : x; }
inline Floats rounded(Floats x) { return (x + 12582912.0f) - 12582912.0f; }  // 1.5 * 2^23, for |x| below 2^22

// exp(x), with a relative error below 4e-6. The same operations as in reference.py.
inline Floats exponential(Floats x) {
    const Floats t = at_most(at_least(x, -87.0f), 87.0f) * 1.44269504f;
    const Floats n = rounded(t);
    const Floats f = t - n;
    Floats y = f * 0.00133336f + 0.00961813f;
    y = y * f + 0.05550411f;
    y = y * f + 0.24022651f;
    y = y * f + 0.69314718f;
    y = y * f + 1.0f;
    const Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;
    return y * load<Floats>(&bits);
}

inline Bytes to_bytes(Floats x) {
    return narrowed(__builtin_convertvector(rounded(at_most(at_least(x, 0.0f), 255.0f)), Ints));
}

// Write the outputs of one row of a panel at `place`.
template <Output KIND, bool RESIDUAL>
inline void write_row(
    const Product& p, Ints sums, int n, const uint8_t* residual, char* out, ptrdiff_t place) {
    if constexpr (KIND == Output::sums) {
        store(out + 4 * place, sums);
    } else {
        Floats value = floats(sums) * load<Floats>(p.scale + n) + load<Floats>(p.shift + n);
        if constexpr (KIND == Output::floats) {
            store(out + 4 * place, value);
        } else {
            if constexpr (RESIDUAL) value += floats(widened(load<Bytes>(residual))) * p.residual_scale;
            const Bytes bytes = to_bytes(value);
            __builtin_memcpy(out + place, &bytes, p.written - n < PANEL ? p.written - n : PANEL);
        }
    }
}

}  // namespace
}  // namespace shvit
