// Clipping and one optimizer step of a network's row, with its own numbers, in one pass while it is in the cache.
// Definitions are those of esper/kasmina/optimizers.

#pragma once

#include <cstdint>

namespace esper {

using i64 = std::int64_t;

struct Rate {
    const float* values;
    i64 stride;  // 0: one number for all rows
};

enum Rule : i64 { SGD, ADAM, ADAMW };

// Rows that learn. What they become may be written over what they were.
struct Update {
    i64 rows, width, threads, rule;
    const float *params, *moments, *grad;
    i64 params_row, moments_row, moments_next, grad_row;
    const i64 *owners, *steps;  // row of the rates of each row (null: its own number); steps taken, the first included
    Rate lr, decay, clip, momentum, beta1, beta2, epsilon;
    const bool* decays;  // AdamW: the columns of a row that decay; null: all
    i64 decays_row;
    float *new_params, *new_moments;  // contiguous
    i64 lr_next;  // from the learning rates of one step to those of the next
};

// The step of a row that comes `step` behind the first.
void update_row(const Update& c, i64 row, i64 step);

}  // namespace esper
