// Functions of every number by itself, forward and backward; see layers.h.

#pragma once

#include "functions.h"
#include "program.h"

namespace esper {

// gelu by the hyperbolic tangent: x (1 + tanh(inner(x))) / 2.
constexpr float GELU_SCALE = 0.79788456f, GELU_CUBE = 0.044715f;
inline Vec gelu_inner(Vec x) { return GELU_SCALE * (x + GELU_CUBE * x * x * x); }

// A function of the library of every lane.
template <typename Function>
inline Vec by_lane(Vec x, const Function& function) {
    for (i64 lane = 0; lane < PACK; ++lane) x[lane] = function(x[lane]);
    return x;
}

inline Vec value_of(i64 op, Vec x) {
    switch (op) {
        case SIGMOID: return sigmoid(x);
        case TANH: return tanh(x);
        case GELU: return x * normal_below(x);
        case GELU_TANH: return 0.5f * x * (1.0f + tanh(gelu_inner(x)));
        case SOFTPLUS: return relu(x) + by_lane(exp(-magnitude(x)), [](float e) { return std::log1p(e); });
        case EXP: return exp(x);
        case LOG: return by_lane(x, [](float each) { return std::log(each); });
        default: return by_lane(x, [](float each) { return std::sqrt(each); });
    }
}

// The derivative, from the number and its value; see `reread_by` for which of them is there.
inline Vec slope_of(i64 op, Vec x, Vec y) {
    switch (op) {
        case SIGMOID: return y * (1.0f - y);
        case TANH: return 1.0f - y * y;
        case GELU: return normal_below(x) + x * normal_density(x);
        case GELU_TANH: {
            const Vec t = tanh(gelu_inner(x));
            return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * GELU_SCALE * (1.0f + 3.0f * GELU_CUBE * x * x);
        }
        case SOFTPLUS: return sigmoid(x);
        case EXP: return y;
        case LOG: return 1.0f / x;
        default: return 0.5f / y;
    }
}

template <i64 OP>
inline void map_each(const Vec* x, i64 size, Vec* y) {
    for (i64 i = 0; i < size; ++i) y[i] = value_of(OP, x[i]);
}

template <i64 OP>
inline void pull_each(const Vec* x, const Vec* y, const Vec* gy, i64 size, bool add, Vec* gx) {
    for (i64 i = 0; i < size; ++i) {
        const Vec slope = slope_of(OP, x[i], y[i]);
        gx[i] = add ? gx[i] + gy[i] * slope : gy[i] * slope;
    }
}

inline void map_forward(const Instruction& i, const Vec* x, i64 size, Vec* y) {
    const float number = i.number();
    switch (i.op) {
        case RELU: for (i64 n = 0; n < size; ++n) y[n] = relu(x[n]); return;
        case TIMES: for (i64 n = 0; n < size; ++n) y[n] = x[n] * number; return;
        case PLUS: for (i64 n = 0; n < size; ++n) y[n] = x[n] + number; return;
        case RECIPROCAL: for (i64 n = 0; n < size; ++n) y[n] = 1.0f / x[n]; return;
        case ABS: for (i64 n = 0; n < size; ++n) y[n] = magnitude(x[n]); return;
        case SIGMOID: return map_each<SIGMOID>(x, size, y);
        case TANH: return map_each<TANH>(x, size, y);
        case GELU: return map_each<GELU>(x, size, y);
        case GELU_TANH: return map_each<GELU_TANH>(x, size, y);
        case SOFTPLUS: return map_each<SOFTPLUS>(x, size, y);
        case EXP: return map_each<EXP>(x, size, y);
        case LOG: return map_each<LOG>(x, size, y);
        default: return map_each<SQRT>(x, size, y);
    }
}

inline void give(Vec* to, i64 n, bool add, Vec value) { to[n] = add ? to[n] + value : value; }

inline void map_backward(const Instruction& i, const Vec* x, const Vec* y, const Vec* gy, i64 size, bool add, Vec* gx) {
    const float number = i.number();
    switch (i.op) {
        case RELU: for (i64 n = 0; n < size; ++n) give(gx, n, add, y[n] <= 0.0f ? zero() : gy[n]); return;
        case TIMES: for (i64 n = 0; n < size; ++n) give(gx, n, add, gy[n] * number); return;
        case PLUS: for (i64 n = 0; n < size; ++n) give(gx, n, add, gy[n]); return;
        case RECIPROCAL: for (i64 n = 0; n < size; ++n) give(gx, n, add, -gy[n] * y[n] * y[n]); return;
        case ABS:
            for (i64 n = 0; n < size; ++n)
                give(gx, n, add, x[n] > 0.0f ? gy[n] : x[n] < 0.0f ? -gy[n] : x[n] * 0.0f * gy[n]);
            return;
        case SIGMOID: return pull_each<SIGMOID>(x, y, gy, size, add, gx);
        case TANH: return pull_each<TANH>(x, y, gy, size, add, gx);
        case GELU: return pull_each<GELU>(x, y, gy, size, add, gx);
        case GELU_TANH: return pull_each<GELU_TANH>(x, y, gy, size, add, gx);
        case SOFTPLUS: return pull_each<SOFTPLUS>(x, y, gy, size, add, gx);
        case EXP: return pull_each<EXP>(x, y, gy, size, add, gx);
        case LOG: return pull_each<LOG>(x, y, gy, size, add, gx);
        default: return pull_each<SQRT>(x, y, gy, size, add, gx);
    }
}

}  // namespace esper
