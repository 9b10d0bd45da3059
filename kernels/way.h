// A network's way through its programs, forward and backward, with the seeds that learn at the slots in between.

#pragma once

#include "loss.h"
#include "network.h"

namespace esper {

// Hands out memory; without any it only counts.
struct Memory {
    Vec* at;
    i64 used = 0;
    Vec* take(i64 vectors) {
        used += vectors;
        return at ? at + used - vectors : nullptr;
    }
    float* numbers(const Leg& leg) { return reinterpret_cast<float*>(take(packs_of(leg.program->row()))); }
};

// A part of an environment's way, forward and backward: all of it, or in an objective pass what lies behind a slot.
struct Way {
    const Call& call;
    const i64 network, packs;
    const bool given;  // an objective pass: all numbers are held constant, gradients are those of features
    std::vector<Leg> legs;
    std::vector<Vec*> at, back;  // by point: features, and gradients that bypasses have left there
    Vec *work = nullptr, *gradient = nullptr, *other = nullptr;
    Vec* opened = nullptr;  // gradients of a gate's openings
    float *losses, *hits, *aux = nullptr, *numbers = nullptr;  // numbers: gradients and statistics that nobody reads
    Sums sums{};
    i64 first, last;  // packs that this thread takes

    Way(const Call& call, i64 network, bool given, Team& team, i64 member)
        : call(call), network(network), packs(packs_of(call.batch)), given(given), at(call.points), back(call.points),
          losses(call.losses + network * call.batch), hits(call.hits + network * call.batch),
          first(team.first_pack(member, packs)), last(team.first_pack(member + 1, packs)) {
        sums.team = &team;
    }

    // Numbers of this thread's packs, of so many each.
    template <typename Act>
    void own(i64 size, const Act& act) const {
        for (i64 n = first * size; n < last * size; ++n) act(n);
    }
    Pass shared(Pass pass) const {
        pass.sums = &sums;
        return pass;
    }

    void place(Memory& memory, Vec* features, i64 point) {
        at[point] = features;
        for (Leg& leg : legs) {
            leg.h = features, leg.x = leg.is_bypass() ? at[leg.slot->source] : features;
            leg.y = at[leg.point] = features = memory.take(packs * leg.out);
            leg.kept = memory.take(leg.program->kept_by_network(packs));
            if (leg.gathers()) leg.numbers = memory.numbers(leg), leg.grads = memory.numbers(leg);
            if (!given && leg.trains() && call.own) leg.own = memory.take(packs * leg.out);
            if (!leg.gate()) continue;
            leg.gate_kept = memory.take(leg.gate()->kept_by_network(packs));
            leg.openings = memory.take(packs * leg.gate_size());
        }
        for (const Leg& leg : legs)
            if (leg.is_bypass() && gives(leg) && !back[leg.slot->source])
                back[leg.slot->source] = memory.take(packs * leg.in);
    }

    // Whether a gradient of what a seed reads is wanted. In an objective pass, where it comes from inside of the pass.
    bool gives(const Leg& leg) const {
        if (!leg.is_bypass()) return given || !leg.isolated();
        return given ? leg.slot->source >= start : leg.slot->source > 0 && !leg.isolated();
    }
    i64 start = 0;  // the point where the way begins

    // At an alpha.
    Weight weight(const Leg& leg, i64 pack, float alpha) const {
        return weight_of(leg, leg.gate() ? leg.openings + pack * leg.gate_size() : nullptr, alpha);
    }
    bool learns_own(const Leg& leg) const { return !given && call.own && leg.trains(); }

    void forward(const Leg& leg) {
        if (leg.gate()) {
            Pass pass = shared(gate_of(call, leg, work));
            pass.input = {leg.x, leg.in}, pass.output = {leg.openings, leg.gate_size()};
            pass.run_forward(first, last, false, nothing, nothing);
        }
        if (leg.gathers()) sums.team->meet([&] { gather(call, leg, network, work, leg.numbers); });
        Pass pass = shared(pass_of(call, leg, network, work));
        pass.input = {leg.x, leg.in};
        if (leg.block) {
            pass.output = {leg.y, leg.out};
            pass.aux = given ? aux : call.aux + network * call.aux_row + leg.block->aux;
            return pass.run_forward(first, last, false, nothing, nothing);
        }
        pass.aux = given ? aux : leg.slot->aux + leg.row * leg.slot->aux_row;
        pass.run_forward(first, last, false, nothing, [&] {
            const i64 begin = pass.pack * leg.out;
            const Vec *h = leg.h + begin, *s = pass.value(leg.program->output);
            if (!leg.trains()) return mix(leg, h, s, weight(leg, pass.pack, leg.slot->alpha[leg.row]), leg.y + begin);
            std::copy(h, h + leg.out, leg.y + begin);
            if (leg.own) mix(leg, h, s, weight(leg, pass.pack, call.own[network]), leg.own + begin);
        });
    }

    void score() {
        const Leg& head = legs.back();
        const i64 positions = call.positions, classes = head.out / positions;
        const i64 begin = first * PACK, count = std::max<i64>(0, std::min(last * PACK, call.batch) - begin);
        std::fill_n(losses + begin, count, 0.0f), std::fill_n(hits + begin, count, 0.0f);
        for (i64 pack = first; pack < last; ++pack) {
            const i64 from = pack * PACK;
            const i64* targets = call.targets + network * call.targets_network + from * call.targets_sample;
            for (i64 t = 0; t < positions; ++t) {
                const i64 at = pack * head.out + t * classes;
                cross_entropy(head.y + at, classes, targets + t, call.targets_sample,
                              std::min(PACK, call.batch - from), 1.0f / static_cast<float>(call.batch * positions),
                              static_cast<float>(positions), losses + from, hits + from, gradient + at);
            }
        }
    }

    void backward() {
        for (const Leg& leg : legs)
            if (leg.is_bypass() && gives(leg)) own(leg.in, [&](i64 n) { back[leg.slot->source][n] = zero(); });
        for (auto leg = legs.rbegin(); leg != legs.rend(); ++leg) {
            if (leg == legs.rbegin() || leg[-1].point != leg->point) collect(leg->point, leg->out);
            leg->block ? backward_block(*leg) : backward_slot(*leg);
        }
    }

    // Add what bypasses have left at a point.
    void collect(i64 point, i64 size) {
        if (!back[point]) return;
        own(size, [&](i64 n) { gradient[n] += back[point][n]; });
    }

    // Let a pass leave gradients of numbers in a row of `size`: there, or where these were gathered, what `settle` reads.
    void collect_numbers(Pass& pass, const Leg& leg, bool gathers, float* row, i64 size) const {
        pass.totals = gathers ? leg.grads : given ? numbers : row;
        if (first == 0 && !given) std::fill_n(row, size, 0.0f);
        if (first == 0 && pass.totals != row) std::fill_n(pass.totals, pass.program.row(), 0.0f);
        for (i64 share = std::max<i64>(1, first / SHARE); share < shares_of(last); ++share)
            std::fill_n(sums.parts + (share - 1) * sums.row, pass.program.row(), 0.0f);
    }
    // Once all shares have left theirs.
    void settle(const Pass& pass, const Leg& leg, bool gathers, float* row) {
        pass.meet([&] {
            if (given) return;
            pass.add_shares(0, gathers ? pass.program.row() : pass.program.params);
            if (!gathers) return;
            if (leg.program->setup) pull_setup(*leg.program, leg.numbers, work, leg.grads);
            std::copy_n(leg.grads, leg.owned(), row);
        });
    }

    // Gradients of numbers that a block shares, added to those of their owner once these are complete.
    void settle_ties() {
        for (const Leg& leg : legs) {
            const float* from = leg.grads + (leg.block && leg.block->num_ties ? leg.owned() : 0);
            for (i64 n = 0; leg.block && n < leg.block->num_ties; ++n) {
                float* to = call.grad_host + network * call.host_row + leg.block->ties[n].from;
                for (i64 i = 0; i < leg.block->ties[n].size; ++i) to[i] += *from++;
            }
        }
    }

    void backward_block(const Leg& leg) {
        Pass pass = shared(pass_of(call, leg, network, work));
        pass.given = given, pass.input = {leg.x, leg.in}, pass.output = {leg.y, leg.out};
        pass.grad_output = {gradient, leg.out}, pass.grad_input = {other, leg.in};
        float* to = call.grad_host + network * call.host_row + leg.block->params;
        collect_numbers(pass, leg, leg.gathers(), to, leg.owned());
        const bool wanted = given || &leg != legs.data();
        pass.run_backward(leg.program->backward[wanted + 4 * given], first, last, false, nothing, nothing, nothing);
        settle(pass, leg, leg.gathers(), to);
        std::swap(gradient, other);
    }

    // The gradient of a slot's output is that of its seed, of its gate, and of the features that they met.
    void backward_slot(const Leg& leg) {
        if (learns_own(leg)) return;  // the network does not see it, and it has learned already
        if (given && !gives(leg)) return;  // nothing that learns is behind it
        const bool trains = !given && leg.trains();
        pull(leg, gradient, trains ? 1.0f : leg.slot->alpha[leg.row], trains, gives(leg));
    }

    // Pull a gradient `g` of a slot's output through it. `alpha`: what the seed's output was multiplied by, and by the
    // gate's opening. `bare`: by no opening, and the gate learns nothing. `wanted`: whether what they read gets a
    // gradient.
    void pull(const Leg& leg, Vec* g, float alpha, bool bare, bool wanted) {
        Pass pass = shared(pass_of(call, leg, network, work));
        const bool bypass = leg.is_bypass(), gated = leg.gate(), hidden = !given && leg.trains();
        const i64 size = leg.out;
        const auto weight_at = [&](i64 pack) {
            return bare ? Weight{nullptr, alpha, 1, size} : weight(leg, pack, alpha);
        };
        pass.given = given, pass.input = {leg.x, leg.in};
        float* to = leg.slot->grad_params + leg.row * leg.slot->params_row;
        collect_numbers(pass, leg, leg.gathers(), to, leg.slot->params_row);
        pass.run_backward(
            leg.program->backward[wanted + 2 * gated + 4 * given], first, last, false, nothing,
            [&] {
                const Vec *gp = g + pass.pack * size, *h = leg.h + pass.pack * size;
                Vec* gs = pass.grad(leg.program->output);
                weighed(weight_at(pass.pack), [&](i64 n, Vec w) { gs[n] = gp[n] * w; });
                if (gated) open(leg, pass, gp, h, bare ? 0.0f : alpha);
            },
            [&] {
                Vec* gp = g + pass.pack * size;
                if (!bypass && !hidden)
                    weighed(weight_at(pass.pack), [&](i64 n, Vec w) { gp[n] *= 1.0f - w; });
                if (wanted) give_back(leg, pass, g);
            });
        settle(pass, leg, leg.gathers(), to);
        if (gated) pull_gate(leg, g, wanted);
    }

    // The gradient of a gate's openings; alpha 0: none.
    void open(const Leg& leg, const Pass& pass, const Vec* g, const Vec* h, float alpha) {
        const Vec* s = pass.value(leg.program->output);
        const i64 parts = leg.gate_size(), each = leg.out / parts;
        Vec* to = opened + pass.pack * parts;
        for (i64 part = 0, n = 0; part < parts; ++part) {
            Vec sum = {};
            for (const i64 end = n + each; n < end; ++n)
                if (alpha != 0.0f) sum += g[n] * (leg.is_bypass() ? s[n] : s[n] - h[n]);
            to[part] = sum * alpha;
        }
    }

    void pull_gate(const Leg& leg, Vec* g, bool wanted) {
        Pass pass = shared(gate_of(call, leg, work));
        pass.given = given, pass.input = {leg.x, leg.in};
        float* to = leg.slot->grad_gates + leg.slot->gates[leg.row] * leg.slot->gate_row;
        collect_numbers(pass, leg, false, to, leg.slot->gate_row);
        pass.run_backward(
            leg.slot->gate->backward[wanted + 4 * given], first, last, false, nothing,
            [&] { std::copy_n(opened + pass.pack * leg.gate_size(), leg.gate_size(), pass.grad(leg.slot->gate->output)); },
            [&] {
                if (wanted) give_back(leg, pass, g);
            });
        settle(pass, leg, false, to);
    }

    // The gradient of what a seed or gate read, added to that of the features there.
    void give_back(const Leg& leg, const Pass& pass, Vec* g) {
        Vec* to = (leg.is_bypass() ? back[leg.slot->source] : g) + pass.pack * leg.in;
        const Vec* from = pass.grad(0);
        for (i64 n = 0; n < leg.in; ++n) to[n] += from[n];
    }
};

}  // namespace esper
