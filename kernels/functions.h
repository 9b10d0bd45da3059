// Exponentials and what follows from them, of whole vectors: relative errors of a few 1e-7 where nothing else
// is said. NaN stays NaN.
//
// Polynomials are, where nothing else is said, those of Cephes (Moshier 1989), in single precision.

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

// log(1 + e) of 0 <= e <= 1: 2 artanh(e / (2 + e)), by its series.
inline Vec log_above(Vec e) {
    const Vec s = e / (2.0f + e), square = s * s;
    return 2.0f * s * polynomial(square, 1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3, 1.0f);
}

// log(1 + exp(x)).
inline Vec softplus(Vec x) { return (x < 0.0f ? zero() : x) + log_above(exp(-magnitude(x))); }

// The standard normal distribution up to x, with an absolute error of 2e-7: a quotient of polynomials for erf (that of
// Eigen's `generic_fast_erf`), which costs a fifth of what has a small relative error far below 0.
inline Vec normal_below(Vec x) {
    constexpr float MOST = 5.6f;
    const Vec within = x > MOST ? zero() + MOST : x < -MOST ? zero() - MOST : x;
    const Vec t = 0.70710678f * within, square = t * t;
    const Vec above = polynomial(square, -2.72614225801306e-10f, 2.77068142495902e-08f, -2.10102402082508e-06f,
                                 -5.69250639462346e-05f, -7.34990630326855e-04f, -2.95459980854025e-03f,
                                 -1.60960333262415e-02f);
    const Vec under = polynomial(square, -1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f,
                                 -7.37332916720468e-03f, -1.42647390514189e-02f);
    const Vec y = 0.5f + 0.5f * t * above / under;
    return x > MOST ? zero() + 1.0f : x < -MOST ? zero() : y;
}

// Its density.
inline Vec normal_density(Vec x) { return 0.39894228f * exp(-0.5f * x * x); }

}  // namespace esper
