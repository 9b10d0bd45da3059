// Exponentials and what follows from them, of whole vectors: relative errors of a few 1e-7. NaN stays NaN.
//
// Polynomials are those of Cephes (Moshier 1989), in single precision.

#pragma once

#include <cmath>

#include "simd.h"

namespace esper {

typedef std::int32_t Whole __attribute__((vector_size(PACK * sizeof(float))));

template <typename... More>
inline Vec polynomial(Vec x, float first, More... more) {
    Vec y = zero() + first;
    ((y = y * x + more), ...);
    return y;
}

inline Vec magnitude(Vec x) { return x < 0.0f ? -x : x; }

inline Vec exp(Vec x) {
    constexpr float MOST = 88.72284f, LEAST = -87.33654f, ROUND = 12582912.0f;
    const Vec within = x > MOST ? zero() + MOST : x < LEAST ? zero() + LEAST : x == x ? x : zero();
    const Vec twos = (within * 1.44269504f + ROUND) - ROUND;
    const Vec left = twos > 0.0f ? zero() + 1.0f : zero();  // 2^128 is no float, but twice 2^127 is
    const Vec rest = within - twos * 0.693359375f + twos * 2.12194440e-4f;
    const Vec part = polynomial(rest, 1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                1.6666665459e-1f, 5.0000001201e-1f) * rest * rest + rest + 1.0f;
    const Whole bits = (__builtin_convertvector(twos - left, Whole) + 127) << 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof power);
    const Vec y = part * (1.0f + left) * power;
    const Vec bounded = x > MOST ? zero() + HUGE_VALF : x < LEAST ? zero() : y;
    return x == x ? bounded : x;
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

inline Vec tanh(Vec x) {
    const Vec size = magnitude(x), square = x * x;
    const Vec near = polynomial(square, -5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                                -3.33332819422e-1f) * square * x + x;
    const Vec far = 1.0f - 2.0f / (exp(2.0f * size) + 1.0f);
    return size < 0.625f ? near : x < 0.0f ? -far : x == x ? far : x;
}

// The standard normal distribution up to x.
inline Vec normal_below(Vec x) {
    const Vec t = 0.70710678f * x, size = magnitude(t), square = t * t, inverse = 1.0f / square;
    const Vec near = 0.5f + 0.5f * t * polynomial(square, 7.853861353153693e-5f, -8.010193625184903e-4f,
                                                  5.188327685732524e-3f, -2.685381193529856e-2f, 1.128358514861418e-1f,
                                                  -3.761262582423300e-1f, 1.128379165726710f);
    const Vec middle = polynomial(inverse, 2.326819970068386e-2f, -1.387039388740657e-1f, 3.687424674597105e-1f,
                                  -5.824733027278666e-1f, 6.210004621745983e-1f, -4.944515323274145e-1f,
                                  3.404879937665872e-1f, -2.741127028184656e-1f, 5.638259427386472e-1f);
    const Vec out = polynomial(inverse, -1.047766399936249e+1f, 1.297719955372516e+1f, -7.495518717768503f,
                               2.921019019210786f, -1.015265279202700f, 4.218463358204948e-1f, -2.820767439740514e-1f,
                               5.641895067754075e-1f);
    const Vec above = 0.5f * exp(-square) / size * (size < 2.0f ? middle : out);
    const Vec far = x > 0.0f ? 1.0f - above : above;
    return size < 1.0f ? near : x == x ? far : x;
}

// Its density.
inline Vec normal_density(Vec x) { return 0.39894228f * exp(-0.5f * x * x); }

}  // namespace esper
