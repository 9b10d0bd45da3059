// What a network learns by.

#pragma once

#include "norms.h"

namespace esper {

// Cross-entropy of a pack: losses, whether the largest logit is the target's, and the gradient of the mean loss.
inline void cross_entropy(const Vec* logits, i64 classes, const i64* targets, i64 stride, i64 samples, float share,
                          float* losses, float* hits, Vec* grad) {
    Vec most = logits[0], sum = {};
    for (i64 c = 1; c < classes; ++c) most = larger(most, logits[c]);
    for (i64 c = 0; c < classes; ++c) {
        const Vec below = logits[c] - most;
        for (i64 s = 0; s < PACK; ++s) grad[c][s] = std::exp(below[s]);
        sum += grad[c];
    }
    const Vec mask = lanes_below(samples) * share;
    for (i64 c = 0; c < classes; ++c) grad[c] *= mask / sum;
    for (i64 s = 0; s < samples; ++s) {
        const i64 target = targets[s * stride];
        i64 best = 0;  // the first of the largest, NaN above all
        for (i64 c = 1; c < classes; ++c) {
            const float a = logits[c][s], b = logits[best][s];
            if (a > b || (a != a && b == b)) best = c;
        }
        losses[s] = std::log(sum[s]) - (logits[target][s] - most[s]);
        hits[s] = best == target;
        grad[target][s] -= share;
    }
}

}  // namespace esper
