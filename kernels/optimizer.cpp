// One optimizer step of many rows.

#include "optimizer.h"

#include <cmath>

namespace esper {
namespace {

constexpr i64 LEAST = 1 << 15;  // numbers worth a second thread

// The sum of squares, in sixteen parts so that it fills vector registers.
inline float norm(const float* x, i64 count) {
    float parts[16] = {};
    i64 i = 0;
    for (; i + 16 <= count; i += 16)
        for (int j = 0; j < 16; ++j) parts[j] += x[i + j] * x[i + j];
    float sum = 0.0f;
    for (float part : parts) sum += part;
    for (; i < count; ++i) sum += x[i] * x[i];
    return std::sqrt(sum);
}

inline void sgd(const float* p, const float* m, const float* g, i64 count, float share, float decay, float momentum,
                float lr, float* to_p, float* to_m) {
#pragma omp simd
    for (i64 i = 0; i < count; ++i) {
        const float velocity = g[i] * share + p[i] * decay + m[i] * momentum;
        to_m[i] = velocity;
        to_p[i] = p[i] - lr * velocity;
    }
}

struct Adam {
    float share, decay, shrink, beta1, beta2, step, scale, epsilon;  // shrink: what AdamW's decay leaves
    const bool* decays;
};

template <bool DECOUPLED>
inline void adam(const float* p, const float* mean, const float* square, const float* g, i64 count, const Adam& a,
                 float* to_p, float* to_mean, float* to_square) {
#pragma omp simd
    for (i64 i = 0; i < count; ++i) {
        const float grad = DECOUPLED ? g[i] * a.share : g[i] * a.share + p[i] * a.decay;
        const float start = DECOUPLED && (!a.decays || a.decays[i]) ? p[i] * a.shrink : p[i];
        to_mean[i] = mean[i] + (grad - mean[i]) * (1.0f - a.beta1);
        to_square[i] = square[i] + (grad * grad - square[i]) * (1.0f - a.beta2);
        to_p[i] = start - a.step * to_mean[i] / (std::sqrt(to_square[i]) / a.scale + a.epsilon);
    }
}

}  // namespace

void update_row(const Update& c, i64 row, i64 step) {
    const i64 owner = c.owners ? c.owners[row] : row;
    const auto at = [&](const Rate& rate) { return rate.values[owner * rate.stride]; };
    const float *p = c.params + row * c.params_row, *m = c.moments + row * c.moments_row, *g = c.grad + row * c.grad_row;
    float *to_p = c.new_params + row * c.width, *to_m = c.new_moments + row * c.width * (c.rule == SGD ? 1 : 2);
    const float ratio = at(c.clip) / (norm(g, c.width) + 1e-6f), share = ratio > 1.0f ? 1.0f : ratio;
    const float lr = c.lr.values[step * c.lr_next + owner * c.lr.stride];
    if (c.rule == SGD) return sgd(p, m, g, c.width, share, at(c.decay), at(c.momentum), lr, to_p, to_m);
    const float elapsed = static_cast<float>(c.steps[row] + step), beta1 = at(c.beta1), beta2 = at(c.beta2);
    const Adam numbers{share, at(c.decay), 1.0f - lr * at(c.decay), beta1, beta2,
                       lr / (1.0f - std::pow(beta1, elapsed)), std::sqrt(1.0f - std::pow(beta2, elapsed)),
                       at(c.epsilon), c.decays ? c.decays + row * c.decays_row : nullptr};
    const auto rule = c.rule == ADAM ? adam<false> : adam<true>;
    rule(p, m, m + c.moments_next, g, c.width, numbers, to_p, to_m, to_m + c.width);
}

}  // namespace esper

extern "C" void esper_update(const void* arguments) {
    const auto& call = *static_cast<const esper::Update*>(arguments);
#pragma omp parallel for num_threads(call.threads) if (call.threads > 1 && call.rows * call.width > esper::LEAST)
    for (esper::i64 row = 0; row < call.rows; ++row) esper::update_row(call, row, 0);
}
