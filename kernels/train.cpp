// Training: every environment's minibatch forward, through the loss, and backward, and gradients of what learns.
// Features stay in the cache from the first layer to the last and back. An environment's result depends neither on the
// others nor on the number of threads.
//
// A seed in TRAINING is not seen by the network. It learns by the gradient at the slot's output (straight-through), or
// by its own objective: the loss of the network as if it were on at its target alpha, all else given. For that the way
// behind the slot is taken once more (the objective pass), with batch statistics of its own, which move no buffers.

#include "loss.h"
#include "network.h"

namespace esper {
namespace {

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
    Vec *work = nullptr, *gradient = nullptr, *other = nullptr, *weighed = nullptr;
    float *losses, *hits, *aux = nullptr, *numbers = nullptr;  // numbers: gradients and statistics that nobody reads

    Way(const Call& call, i64 network, bool given)
        : call(call), network(network), packs(packs_of(call.batch)), given(given), at(call.points), back(call.points),
          losses(call.losses + network * call.batch), hits(call.hits + network * call.batch) {}

    void place(Memory& memory, Vec* features, i64 point) {
        at[point] = features;
        for (Leg& leg : legs) {
            leg.h = features, leg.x = leg.is_bypass() ? at[leg.slot->source] : features;
            leg.y = at[leg.point] = features = memory.take(packs * leg.out);
            leg.kept = memory.take(leg.program->kept_by_network(packs));
            if (leg.program->setup) leg.numbers = memory.numbers(leg), leg.grads = memory.numbers(leg);
            if (!given && leg.trains() && call.own) leg.own = memory.take(packs * leg.out);
            if (!leg.gate()) continue;
            leg.gate_kept = memory.take(leg.gate()->kept_by_network(packs)), leg.weights = memory.take(packs);
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

    Vec weight(const Leg& leg, i64 pack) const {
        return leg.gate() ? leg.weights[pack] : zero() + leg.slot->alpha[leg.row];
    }
    // Of the slot's own objective: at the target alpha.
    Vec own_weight(const Leg& leg, i64 pack) const {
        return (leg.gate() ? leg.weights[pack] : zero() + 1.0f) * call.own[network];
    }
    bool learns_own(const Leg& leg) const { return !given && call.own && leg.trains(); }

    void forward(const Leg& leg) {
        if (leg.gate()) {
            Pass pass = gate_of(call, leg, work);
            const float alpha = learns_own(leg) ? 1.0f : leg.slot->alpha[leg.row];
            pass.input = {leg.x, leg.in}, pass.output = {leg.weights, 1};
            pass.run_forward(0, packs, false, nothing, [&] { leg.weights[pass.pack] *= alpha; });
        }
        if (leg.program->setup) set_up(*leg.program, params_of(call, leg, network), work, leg.numbers);
        Pass pass = pass_of(call, leg, network, work);
        pass.input = {leg.x, leg.in};
        if (leg.block) {
            pass.output = {leg.y, leg.out};
            pass.aux = given ? aux : call.aux + network * call.aux_row + leg.block->aux;
            return pass.run_forward(0, packs, false, nothing, nothing);
        }
        pass.aux = given ? aux : leg.slot->aux + leg.row * leg.slot->aux_row;
        pass.run_forward(0, packs, false, nothing, [&] {
            const i64 begin = pass.pack * leg.out;
            const Vec *h = leg.h + begin, *s = pass.value(leg.program->output);
            if (!leg.trains()) return mix(leg, h, s, weight(leg, pass.pack), leg.y + begin);
            std::copy(h, h + leg.out, leg.y + begin);
            if (leg.own) mix(leg, h, s, own_weight(leg, pass.pack), leg.own + begin);
        });
    }

    void score() {
        const Leg& last = legs.back();
        for (i64 pack = 0; pack < packs; ++pack) {
            const i64 from = pack * PACK;
            const i64* targets = call.targets + network * call.targets_network + from * call.targets_sample;
            cross_entropy(last.y + pack * last.out, last.out, targets, call.targets_sample,
                          std::min(PACK, call.batch - from), 1.0f / static_cast<float>(call.batch), losses + from,
                          hits + from, gradient + pack * last.out);
        }
    }

    void backward() {
        for (const Leg& leg : legs)
            if (leg.is_bypass() && gives(leg)) std::fill_n(back[leg.slot->source], packs * leg.in, zero());
        for (auto leg = legs.rbegin(); leg != legs.rend(); ++leg) {
            if (leg == legs.rbegin() || leg[-1].point != leg->point) collect(leg->point, leg->out);
            leg->block ? backward_block(*leg) : backward_slot(*leg);
        }
    }

    // Add what bypasses have left at a point.
    void collect(i64 point, i64 size) {
        if (!back[point]) return;
        for (i64 n = 0; n < packs * size; ++n) gradient[n] += back[point][n];
    }

    float* gradients(float* rows, i64 stride, i64 row, i64 size) {
        float* to = given ? numbers : rows + row * stride;
        return static_cast<float*>(std::memset(to, 0, (given ? size : stride) * sizeof(float)));
    }
    // Where a pass leaves gradients of numbers: `to`, or where these go on beyond the row, what `settle` reads.
    float* before_settling(const Leg& leg, float* to) {
        if (!leg.program->setup) return to;
        return static_cast<float*>(std::memset(leg.grads, 0, leg.program->row() * sizeof(float)));
    }
    void settle(const Leg& leg, float* to) {
        if (leg.program->setup && !given) pull_setup(*leg.program, leg.numbers, leg.grads, work, to);
    }

    void backward_block(const Leg& leg) {
        Pass pass = pass_of(call, leg, network, work);
        pass.given = given, pass.input = {leg.x, leg.in}, pass.output = {leg.y, leg.out};
        pass.grad_output = {gradient, leg.out}, pass.grad_input = {other, leg.in};
        float* to = given ? gradients(nullptr, 0, 0, leg.program->params)
                          : call.grad_host + network * call.host_row + leg.block->params;
        pass.grad_params = before_settling(leg, to);
        pass.run_backward(leg.program->backward[given || &leg != legs.data()], 0, packs, false, nothing, nothing,
                          nothing);
        settle(leg, to);
        std::swap(gradient, other);
    }

    // The gradient of a slot's output is that of its seed, of its gate, and of the features that they met.
    void backward_slot(const Leg& leg) {
        if (learns_own(leg)) return;  // the network does not see it, and it has learned already
        const bool trains = !given && leg.trains();
        pull(leg, gradient, [&](i64 pack) { return trains ? zero() + 1.0f : weight(leg, pack); },
             trains ? 0.0f : leg.slot->alpha[leg.row], gives(leg));
    }

    // Pull a gradient `g` of a slot's output through it. `weight_of`: what the seed's output was multiplied by.
    // `alpha`: what the gate's was; 0: the gate learns nothing. `wanted`: whether what they read gets a gradient.
    template <typename Weight>
    void pull(const Leg& leg, Vec* g, const Weight& weight_of, float alpha, bool wanted) {
        Pass pass = pass_of(call, leg, network, work);
        const bool bypass = leg.is_bypass(), gated = leg.gate(), hidden = !given && leg.trains();
        const i64 size = leg.out;
        pass.given = given, pass.input = {leg.x, leg.in};
        float* to = gradients(leg.slot->grad_params, leg.slot->params_row, leg.row, leg.program->params);
        pass.grad_params = before_settling(leg, to);
        pass.run_backward(
            leg.program->backward[wanted + 2 * gated], 0, packs, false, nothing,
            [&] {
                const Vec *gp = g + pass.pack * size, *h = leg.h + pass.pack * size, w = weight_of(pass.pack);
                Vec *gs = pass.grad(leg.program->output), sum = {};
                for (i64 n = 0; n < size; ++n) gs[n] = gp[n] * w;
                if (!gated) return;
                const Vec* s = pass.value(leg.program->output);
                for (i64 n = 0; n < size && alpha != 0.0f; ++n) sum += gp[n] * (bypass ? s[n] : s[n] - h[n]);
                weighed[pass.pack] = sum * alpha;
            },
            [&] {
                Vec* gp = g + pass.pack * size;
                if (!bypass && !hidden)
                    for (i64 n = 0; n < size; ++n) gp[n] *= 1.0f - weight_of(pass.pack);
                if (wanted) give_back(leg, pass, g);
            });
        settle(leg, to);
        if (gated) pull_gate(leg, g, wanted);
    }

    void pull_gate(const Leg& leg, Vec* g, bool wanted) {
        Pass pass = gate_of(call, leg, work);
        pass.given = given, pass.input = {leg.x, leg.in};
        pass.grad_params =
            gradients(leg.slot->grad_gates, leg.slot->gate_row, leg.slot->gates[leg.row], leg.slot->gate->params);
        pass.run_backward(
            leg.slot->gate->backward[wanted], 0, packs, false, nothing,
            [&] { *pass.grad(leg.slot->gate->output) = weighed[pass.pack]; },
            [&] {
                if (wanted) give_back(leg, pass, g);
            });
    }

    // The gradient of what a seed or gate read, added to that of the features there.
    void give_back(const Leg& leg, const Pass& pass, Vec* g) {
        Vec* to = (leg.is_bypass() ? back[leg.slot->source] : g) + pass.pack * leg.in;
        const Vec* from = pass.grad(0);
        for (i64 n = 0; n < leg.in; ++n) to[n] += from[n];
    }
};

// One environment's minibatch.
class Training {
    const Call& call;
    const i64 network;
    Way main;
    std::vector<Way> passes;  // of the seeds that learn their own objectives
    std::vector<const Leg*> learners;

    // What no pass shares: features; then what they do, one after the other.
    void place(Scratch& scratch) {
        Vec* at = nullptr;
        for (int again = 0; again < 2; ++again) {
            Memory memory{at};
            Vec* x = memory.take(main.packs * main.legs[0].in);
            main.place(memory, x, 0);
            const i64 shared = memory.used;
            i64 most = shared;
            for (i64 n = 0; n < static_cast<i64>(passes.size()); ++n) {
                Memory own{at, shared};
                passes[n].at = main.at;
                passes[n].place(own, learners[n]->own, learners[n]->point);
                most = std::max(most, own.used);
            }
            memory.used = most;
            share(memory);
            if (!at) at = scratch.room(memory.used);
        }
    }

    void share(Memory& memory) {
        i64 widest = 0, room = 0, params = 0, aux = 0;
        const auto consider = [&](const Program& p) {
            room = std::max({room, Pass::room(p, main.packs), setup_room(p)});
            params = std::max(params, p.params), aux = std::max(aux, p.aux);
        };
        for (const Leg& leg : main.legs) {
            widest = std::max({widest, leg.in, leg.out});
            consider(*leg.program);
            if (leg.gate()) consider(*leg.gate());
        }
        main.work = memory.take(room), main.weighed = memory.take(main.packs);
        main.gradient = memory.take(main.packs * widest), main.other = memory.take(main.packs * widest);
        main.numbers = reinterpret_cast<float*>(memory.take(packs_of(params)));
        main.aux = reinterpret_cast<float*>(memory.take(packs_of(aux)));
        float* scores = reinterpret_cast<float*>(memory.take(2 * main.packs));
        for (Way& pass : passes) {
            pass.work = main.work, pass.weighed = main.weighed, pass.gradient = main.gradient, pass.other = main.other;
            pass.numbers = main.numbers, pass.aux = main.aux;
            pass.losses = scores, pass.hits = scores + main.packs * PACK;
        }
    }

    // The way behind a slot: blocks, and the seeds that the network sees.
    Way behind(const Leg& from) const {
        Way way(call, network, true);
        way.start = from.point;
        for (const Leg* leg = &from + 1; leg < main.legs.data() + main.legs.size(); ++leg)
            if (leg->block || leg->merged()) way.legs.push_back(*leg);
        return way;
    }

    void learn_own(const Leg& leg, Way& pass) {
        Vec* gradient;
        if (pass.legs.empty()) {  // the slot acts on the logits, and nothing behind it
            Leg end = leg;
            end.y = leg.own;
            pass.legs.push_back(end), pass.score(), pass.legs.pop_back();
            gradient = pass.gradient;
        } else {
            for (const Leg& each : pass.legs) pass.forward(each);
            pass.score(), pass.backward();
            gradient = pass.gradient;
            if (pass.legs[0].point != leg.point && pass.back[leg.point])  // what a bypass read where the slot acts
                for (i64 n = 0; n < main.packs * leg.out; ++n) gradient[n] += pass.back[leg.point][n];
        }
        main.pull(leg, gradient, [&](i64 pack) { return main.own_weight(leg, pack); }, call.own[network], false);
    }

  public:
    Training(const Call& c, i64 network, Scratch& scratch) : call(c), network(network), main(c, network, false) {
        i64 point = 0;
        for (i64 step = 0; step < call.length; ++step) {
            Leg leg = leg_of(call, call.route[step], network);
            if (leg.block) ++point;
            leg.point = point;
            if (leg.program) main.legs.push_back(leg);
        }
        for (const Leg& leg : main.legs)
            if (main.learns_own(leg)) learners.push_back(&leg), passes.push_back(behind(leg));
        place(scratch);
    }

    void run() {
        const Leg& first = main.legs.front();
        for (i64 pack = 0; pack < main.packs; ++pack)
            load_input(call, network, pack, first.in, first.h + pack * first.in);
        for (const Leg& leg : main.legs) main.forward(leg);
        for (i64 n = 0; n < static_cast<i64>(passes.size()); ++n) learn_own(*learners[n], passes[n]);
        main.score();
        std::memset(call.grad_host + network * call.host_row, 0, call.host_row * sizeof(float));
        main.backward();
    }
};

}  // namespace
}  // namespace esper

extern "C" void esper_train(const void* arguments) {
    const auto& call = *static_cast<const esper::Call*>(arguments);
#pragma omp parallel for num_threads(call.threads) schedule(dynamic) if (call.threads > 1 && call.networks > 1)
    for (esper::i64 network = 0; network < call.networks; ++network) {
        thread_local esper::Scratch scratch;
        esper::Training(call, network, scratch).run();
    }
}
