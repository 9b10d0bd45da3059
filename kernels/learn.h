// What a network makes of its gradients: an optimizer step of each of its rows, and running averages.

#pragma once

#include "network.h"

namespace esper {

constexpr float MOMENTUM = 0.1f;  // of running averages; esper.kasmina.layers has the same

inline void follow(const Averages& averages, i64 row, i64 kind, const float* aux) {
    float* to = averages.rows + row * averages.row;
    const i64* follows = averages.follows + kind * averages.count;
    for (i64 n = 0; n < averages.count; ++n)
        if (follows[n] >= 0) to[n] += MOMENTUM * (aux[follows[n]] - to[n]);
}

// A call's arguments for one of its minibatches.
inline Call minibatch(const Call& call, i64 step) {
    Call at = call;
    at.picks += step * call.picks_step, at.targets += step * call.targets_step;
    at.losses += step * call.networks * call.batch, at.hits += step * call.networks * call.batch;
    return at;
}

inline void learn(const Call& call, i64 network, i64 step) {
    const Learning& learning = *call.learning;
    update_row(*learning.host, network, step);
    follow(*learning.buffers, network, 0, call.aux + network * call.aux_row);
    for (i64 place = 0; place < call.length; ++place) {
        if (call.route[place] >= 0) continue;
        const i64 number = -1 - call.route[place];
        const Slot& slot = call.slots[number];
        const i64 row = slot.rows[network];
        if (row < 0) continue;
        update_row(learning.seeds[number], row, step);
        follow(learning.seed_buffers[number], row, slot.kinds[row], slot.aux + row * slot.aux_row);
        if (slot.gates && slot.gates[row] >= 0) update_row(learning.gates[number], slot.gates[row], step);
    }
}

}  // namespace esper
