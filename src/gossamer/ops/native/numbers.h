// Weights as they lie in memory, and how a vector of them becomes float32.

#pragma once

#include <cstdint>
#include <cstring>

#include "gemm.h"

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace gossamer {

// A matrix's type of numbers; ops/matrix.py numbers them in the same way.
enum NumberType : int64_t { FLOAT32, BFLOAT16, INT8 };

// The upper 16 bits of a float32.
struct BFloat16 {
    uint16_t upper;
    explicit operator float() const {
        const uint32_t bits = uint32_t(upper) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        return value;
    }
};

inline int64_t size_of(int64_t type) { return type == FLOAT32 ? 4 : type == BFLOAT16 ? 2 : 1; }

inline Vector load(const float *p) { return *reinterpret_cast<const Vector *>(p); }

// GCC's own conversions of vectors take at least twice as long, or go through scalars.
#if defined(__aarch64__)
inline Vector load(const BFloat16 *p) {
    const uint16x4_t upper = vld1_u16(reinterpret_cast<const uint16_t *>(p));
    return (Vector)vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(upper), 16));
}
inline Vector load(const int8_t *p) {
    int32_t bytes;
    std::memcpy(&bytes, p, sizeof(bytes));
    const int16x8_t shorts = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
    return (Vector)vcvtq_f32_s32(vmovl_s16(vget_low_s16(shorts)));
}
#elif defined(__AVX512F__)
// With a mask of all lanes, because GCC 12 warns of an uninitialized vector in its own form without one.
inline Vector load(const BFloat16 *p) {
    const __m256i upper = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return (Vector)_mm512_maskz_slli_epi32(0xFFFF, _mm512_maskz_cvtepu16_epi32(0xFFFF, upper), 16);
}
inline Vector load(const int8_t *p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return (Vector)_mm512_maskz_cvtepi32_ps(0xFFFF, _mm512_maskz_cvtepi8_epi32(0xFFFF, bytes));
}
#elif defined(__AVX2__)
inline Vector load(const BFloat16 *p) {
    const __m256i upper = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    return (Vector)_mm256_castsi256_ps(_mm256_slli_epi32(upper, 16));
}
inline Vector load(const int8_t *p) {
    return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}
#else
inline Vector load(const BFloat16 *p) {
    typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2), may_alias));
    typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
    return (Vector)(__builtin_convertvector(*reinterpret_cast<const Halves *>(p), Words) << 16);
}
inline Vector load(const int8_t *p) {
    typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
    typedef int16_t Shorts __attribute__((vector_size(LANES * sizeof(int16_t))));
    typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
    typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
    // Numbers are widened twofold at a time, because in one step GCC splits the vector into scalars.
    const Shorts shorts = __builtin_convertvector(*reinterpret_cast<const Bytes *>(p), Shorts);
    return (Vector)__builtin_convertvector(__builtin_convertvector(shorts, Ints), Floats);
}
#endif

// y = x as float32, for n numbers.
inline void widen(float *y, const BFloat16 *x, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) *reinterpret_cast<Vector *>(y + i) = load(x + i);
    for (; i < n; i++) y[i] = float(x[i]);
}

}  // namespace gossamer
