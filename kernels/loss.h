// What a network learns by.

#pragma once

#include "functions.h"

namespace esper {

// The largest logit of every sample, and the first class that has it; NaN is above all.
struct Largest {
    Vec value, place;
};

inline Largest largest(const Vec* logits, i64 classes) {
    Largest found{logits[0], {}};
    for (i64 c = 1; c < classes; ++c) {
        const auto above = (logits[c] > found.value) | ((logits[c] != logits[c]) & (found.value == found.value));
        found.value = above ? logits[c] : found.value;
        found.place = above ? zero() + static_cast<float>(c) : found.place;
    }
    return found;
}

// What a pack's prediction says of the networks: whether the largest logit is the target's, and, if asked, its
// cross-entropy. Samples are `stride` apart in targets, hits and losses.
inline void score(const Vec* logits, i64 classes, const i64* targets, i64 stride, i64 samples, float* losses,
                  float* hits) {
    const auto [most, best] = largest(logits, classes);
    Vec sum = {};
    for (i64 c = 0; losses && c < classes; ++c) sum += exp(logits[c] - most);
    for (i64 s = 0; s < samples; ++s) {
        const i64 target = targets[s * stride];
        hits[s * stride] = best[s] == static_cast<float>(target);
        if (losses) losses[s * stride] = std::log(sum[s]) - (logits[target][s] - most[s]);
    }
}

// Cross-entropy of a pack's prediction at one of `positions`: adds losses, and whether the largest logit is the
// target's, each over all positions; gives the gradient of the mean loss, `share` of a prediction's own.
inline void cross_entropy(const Vec* logits, i64 classes, const i64* targets, i64 stride, i64 samples, float share,
                          float positions, float* losses, float* hits, Vec* grad) {
    const auto [most, best] = largest(logits, classes);
    Vec sum = {};
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
