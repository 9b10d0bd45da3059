// A whole network: host blocks with the seeds of their slots in between, one program after the other (execute.h).
//
// The features' way is a route of blocks and slots. Points lie between blocks: point 0 is the input, point p is behind
// block p - 1 and the slots that act there. A slot reads at its source; its seed's output takes the place of the
// features by alpha, or, where the source is an earlier point, is added to them (a bypass).

#pragma once

#include "execute.h"
#include "optimizer.h"

namespace esper {

// Numbers of an earlier block: where they begin in a network's row, and how many.
struct Tie {
    i64 from, size;
};

struct Block {
    const Program* program;
    i64 params, buffers, aux;  // where its part of each row begins
    i64 num_ties;
    const Tie* ties;  // what its program reads behind its own numbers
};

// The seeds of a slot. A row is one seed; strides count numbers.
struct Slot {
    i64 source;                      // the point that a bypass reads; -1: where the slot acts
    const Program* const* programs;  // by kind
    const i64 *kinds, *rows;         // kind of a row; row of an environment or lane, -1 if it has none
    const float* alpha;
    const float* params;
    i64 params_row;
    const float* buffers;
    i64 buffers_row;
    const i64* owners;  // where in `params` and `buffers` the numbers of a row are; null: its own number
    const Program* gate;
    const float* gate_params;
    i64 gate_row;
    const i64* gates;  // where in `gate_params` the gate of a row is, -1 if it has none
    const bool *training, *isolated, *merged;
    float *grad_params, *grad_gates, *aux;
    i64 aux_row;
};

// Running averages of what batch norms saw, by row.
struct Averages {
    float* rows;
    i64 row, count;
    const i64* follows;  // by kind: the number of `aux` that each follows, -1: none
};

// What is done with gradients: rows of `host`, of the slots' seeds and gates.
struct Learning {
    const Update *host, *seeds, *gates;
    const Averages *buffers, *seed_buffers;
};

struct Call {
    i64 networks, batch, threads, length, points;
    const i64* route;  // [length]: block i, or slot -1 - i
    const Block* blocks;
    const Slot* slots;
    const float* x;
    i64 x_network, x_sample;
    const i64* picks;  // [networks][batch]: x is a dataset, and these its samples; null: a network's own samples
    i64 picks_network, picks_sample;
    const float* host;
    i64 host_row;
    const float* buffers;
    i64 buffers_row;
    const i64* targets;  // training: of every network; inference: [batch][positions], the same for all
    i64 targets_network, targets_sample;
    i64 positions;  // predictions of a sample
    const float* own;  // [networks]: alpha at which a seed in TRAINING learns its own objective; null: straight-through
    float *losses, *hits, *aux;  // inference: [networks][batch][positions], [lanes][batch][positions]
    i64 aux_row;
    float* grad_host;
    const i64 *first, *lanes, *forks, *parents;  // inference
    float* logits;  // [lanes][batch][size], or null
    i64 steps, picks_step, targets_step;  // training: minibatches one after the other
    const Learning* learning;             // null: only gradients are asked for
};

// One program on a network's way, with what is around it; memory is that of all packs.
struct Leg {
    const Program* program;
    const Block* block;
    const Slot* slot;
    i64 row, point;        // of the slot; where its output is
    i64 in, out;           // sizes of its input and output
    Vec *x, *h, *y, *own;  // its input; features before and after it; after it by a seed's own objective
    Vec *kept, *gate_kept, *openings;
    float *numbers, *grads;  // where it gathers: its numbers, and what follows from them; their gradients
    const Program* gate() const { return slot && slot->gates && slot->gates[row] >= 0 ? slot->gate : nullptr; }
    bool is_bypass() const { return slot && slot->source >= 0; }
    bool trains() const { return slot && slot->training && slot->training[row]; }
    bool isolated() const { return slot && slot->isolated && slot->isolated[row]; }
    bool merged() const { return slot && slot->merged && slot->merged[row]; }
    i64 gate_size() const { return slot->gate->registers[slot->gate->output].size(); }
    // Whether its numbers do not lie side by side in the network's row.
    bool gathers() const { return program->setup || (block && block->num_ties); }
    i64 owned() const {
        i64 count = program->params;
        for (i64 n = 0; block && n < block->num_ties; ++n) count -= block->ties[n].size;
        return count;
    }
};

// A program of the route, if there is one there for a lane.
inline Leg leg_of(const Call& call, i64 step, i64 lane) {
    Leg leg{};
    if (step >= 0) {
        leg.block = call.blocks + step, leg.program = leg.block->program;
    } else {
        leg.slot = call.slots - 1 - step, leg.row = leg.slot->rows[lane];
        if (leg.row < 0) return leg;
        leg.program = leg.slot->programs[leg.slot->kinds[leg.row]];
    }
    leg.in = leg.program->registers[0].size(), leg.out = leg.program->registers[leg.program->output].size();
    return leg;
}

inline const auto nothing = [] {};

// A network's own numbers for a leg, of the call.
inline const float* params_of(const Call& call, const Leg& leg, i64 network) {
    if (leg.block) return call.host + network * call.host_row + leg.block->params;
    return leg.slot->params + (leg.slot->owners ? leg.slot->owners[leg.row] : leg.row) * leg.slot->params_row;
}

inline Pass pass_of(const Call& call, const Leg& leg, i64 network, Vec* work) {
    const float* params = leg.numbers ? leg.numbers : params_of(call, leg, network);
    if (leg.block)
        return {*leg.program, call.batch, params, call.buffers + network * call.buffers_row + leg.block->buffers, work,
                leg.kept};
    const Slot& s = *leg.slot;
    const i64 owner = s.owners ? s.owners[leg.row] : leg.row;
    return {*leg.program, call.batch, params, s.buffers + owner * s.buffers_row, work, leg.kept};
}

// The setup's input: a network's row as the one sample.
inline Pass setup_of(const Program& program, const float* row, Vec* work) {
    Pass pass{*program.setup, 1, nullptr, nullptr, work, nullptr};
    for (i64 n = 0; n < program.params; ++n) pass.input.at[n] = zero() + row[n];
    return pass;
}

// Copies of a leg's own numbers and of those that it shares, and what follows from them.
inline void gather(const Call& call, const Leg& leg, i64 network, Vec* work, float* row) {
    const Program& program = *leg.program;
    float* end = std::copy_n(params_of(call, leg, network), leg.owned(), row);
    for (i64 n = 0; leg.block && n < leg.block->num_ties; ++n)
        end = std::copy_n(call.host + network * call.host_row + leg.block->ties[n].from, leg.block->ties[n].size, end);
    if (!program.setup) return;
    Pass pass = setup_of(program, row, work);
    pass.run_forward(0, 1, false, nothing, [&] {
        const Vec* found = pass.value(program.setup->output);
        for (i64 n = program.params; n < program.row(); ++n) row[n] = found[n - program.params][0];
    });
}

// Gradients of what follows from a row, added to those of the row, which they lie behind. Where nothing does, since all
// of it is constants, the row's would never be written.
inline void pull_setup(const Program& program, const float* row, Vec* work, float* grad) {
    const Program& setup = *program.setup;
    const auto reads_row = [&](const BackwardStep& step) { return setup.instructions[step.instruction].reads(0); };
    const auto& steps = setup.backward[1].steps;
    if (std::none_of(steps.begin(), steps.end(), reads_row)) return;
    Pass pass = setup_of(program, row, work);
    pass.run_backward(
        program.setup->backward[1], 0, 1, false, nothing,
        [&] {
            Vec* to = pass.grad(program.setup->output);
            std::fill_n(to, program.row() - program.params, zero());
            for (i64 n = program.params; n < program.row(); ++n) to[n - program.params][0] = grad[n];
        },
        [&] {
            for (i64 n = 0; n < program.params; ++n) grad[n] += pass.grad(0)[n][0];
        });
}

// Room for `gather`.
inline i64 setup_room(const Program& program) {
    return program.setup ? Pass::room(*program.setup, 1) + program.setup->kept_by_network(1) : 0;
}

inline Pass gate_of(const Call& call, const Leg& leg, Vec* work) {
    const Slot& s = *leg.slot;
    return {*s.gate, call.batch, s.gate_params + s.gates[leg.row] * s.gate_row, nullptr, work, leg.gate_kept};
}

// What a seed's output is multiplied by: a number, times a gate's opening of every part of the features, if it has one.
struct Weight {
    const Vec* openings;
    float number;
    i64 parts, each;  // neighbours that share an opening
    Vec of(i64 part) const { return openings ? openings[part] * number : zero() + number; }
};

inline Weight weight_of(const Leg& leg, const Vec* openings, float number) {
    const i64 parts = leg.gate() ? leg.gate_size() : 1;
    return {leg.gate() ? openings : nullptr, number, parts, leg.out / parts};
}

// `act(n, w)` for every number n of the features, with its weight w.
template <typename Act>
inline void weighed(const Weight& weight, const Act& act) {
    for (i64 part = 0, n = 0; part < weight.parts; ++part) {
        const Vec w = weight.of(part);
        for (const i64 end = n + weight.each; n < end; ++n) act(n, w);
    }
}

// lerp(x, out, w), as torch computes it.
inline Vec lerp(Vec x, Vec out, Vec w) {
    const Vec way = out - x;
    return w < 0.5f ? x + w * way : out - way * (1.0f - w);
}

// What the network sees of a slot.
inline void mix(const Leg& leg, const Vec* h, const Vec* s, const Weight& weight, Vec* y) {
    if (leg.is_bypass())
        weighed(weight, [&](i64 n, Vec w) { y[n] = h[n] + w * s[n]; });
    else
        weighed(weight, [&](i64 n, Vec w) { y[n] = lerp(h[n], s[n], w); });
}

// Lanes without a sample repeat the last one: what a layer makes of it is a number wherever it is one of the samples.
inline void load_input(const Call& call, i64 network, i64 pack, i64 size, Vec* to) {
    const float* samples[PACK];
    for (i64 lane = 0; lane < PACK; ++lane) {
        const i64 sample = std::min(pack * PACK + lane, call.batch - 1);
        samples[lane] = call.x + (call.picks ? call.x_sample * call.picks[network * call.picks_network +
                                                                          sample * call.picks_sample]
                                             : network * call.x_network + sample * call.x_sample);
    }
    load_samples(samples, size, to);
}

}  // namespace esper
