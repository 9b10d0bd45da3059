// What a network learns by.

#pragma once

#include "functions.h"
#include "norms.h"

namespace esper {

// Cross-entropy of a pack's prediction at one of `positions`: adds losses, and whether the largest logit is the
// target's, each over all positions; gives the gradient of the mean loss, `share` of a prediction's own.
inline void cross_entropy(const Vec* logits, i64 classes, const i64* targets, i64 stride, i64 samples, float share,
                          float positions, float* losses, float* hits, Vec* grad) {
    Vec most = logits[0], best = {}, sum = {};
    for (i64 c = 1; c < classes; ++c) {  // the first of the largest, NaN above all
        const auto above = (logits[c] > most) | ((logits[c] != logits[c]) & (most == most));
        most = above ? logits[c] : most, best = above ? zero() + static_cast<float>(c) : best;
    }
    for (i64 c = 0; c < classes; ++c) {
        grad[c] = exp(logits[c] - most);
        sum += grad[c];
    }
    const Vec scale = lanes_below(samples) * share / sum;
    for (i64 c = 0; c < classes; ++c) grad[c] *= scale;
    for (i64 s = 0; s < samples; ++s) {
        const i64 target = targets[s * stride];
        losses[s] += (std::log(sum[s]) - (logits[target][s] - most[s])) / positions;
        hits[s] += (best[s] == static_cast<float>(target)) / positions;
        grad[target][s] -= share;
    }
}

}  // namespace esper
