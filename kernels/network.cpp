// A whole network in one piece: host blocks with the seeds of their slots in between, one program after the other
// (execute.h), for many environments at once on a CPU.
//
// Training takes one environment's minibatch forward, through the loss, and backward, and gives gradients: features
// stay in the cache from the first layer to the last and back. Inference takes a pack of an environment's samples
// through all its lanes. An environment's result depends neither on the others nor on the number of threads.

#include "execute.h"

namespace esper {
namespace {

struct Block {
    const Program* program;
    i64 params, buffers, aux;  // where its part of each row begins
};

// The seeds of a slot. A row is one seed; strides count numbers.
struct Slot {
    const Program* const* programs;  // by kind
    const i64 *kinds, *rows;         // kind of a row; row of an environment or lane, -1 if it has none
    const float* alpha;
    const float* params;
    i64 params_row;
    const i64* owners;  // where in `params` the numbers of a row are; null: its own number
    const Program* gate;
    const float* gate_params;
    i64 gate_row;
    const i64* gates;  // where in `gate_params` the gate of a row is, -1 if it has none
    const bool *training, *isolated;
    float *grad_params, *grad_gates;
};

struct Call {
    i64 networks, batch, threads, length;
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
    const i64* targets;  // training
    i64 targets_network, targets_sample;
    float *losses, *hits, *aux;
    i64 aux_row;
    float* grad_host;
    const i64 *first, *lanes, *forks, *parents;  // inference
    float* logits;
};

// One program on a network's way, with what is around it.
struct Leg {
    const Program* program;
    const Block* block;
    const Slot* slot;
    i64 row, in, out;                     // sizes of its input and output
    Vec *x, *y, *kept, *gate_kept, *weights;  // of all packs
    const Program* gate() const { return slot && slot->gates && slot->gates[row] >= 0 ? slot->gate : nullptr; }
    bool trains() const { return slot && slot->training && slot->training[row]; }
    bool isolated() const { return slot && slot->isolated && slot->isolated[row]; }
};

Leg leg_of(const Call& call, i64 step, i64 lane) {
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

Pass pass_of(const Call& call, const Leg& leg, i64 network, Vec* work) {
    if (leg.block)
        return {*leg.program, call.batch, call.host + network * call.host_row + leg.block->params,
                call.buffers + network * call.buffers_row + leg.block->buffers, work, leg.kept};
    const Slot& s = *leg.slot;
    const i64 owner = s.owners ? s.owners[leg.row] : leg.row;
    return {*leg.program, call.batch, s.params + owner * s.params_row, nullptr, work, leg.kept};
}

Pass gate_of(const Call& call, const Leg& leg, Vec* work) {
    const Slot& s = *leg.slot;
    return {*s.gate, call.batch, s.gate_params + s.gates[leg.row] * s.gate_row, nullptr, work, leg.gate_kept};
}

const auto nothing = [] {};

void load_input(const Call& call, i64 network, i64 pack, i64 size, Vec* to) {
    const i64 first = pack * PACK, count = std::min(PACK, call.batch - first);
    if (!call.picks)
        return load_pack(call.x + network * call.x_network + first * call.x_sample, call.x_sample, count, size, to);
    const float* samples[PACK];
    for (i64 lane = 0; lane < count; ++lane)
        samples[lane] = call.x + call.x_sample * call.picks[network * call.picks_network +
                                                            (first + lane) * call.picks_sample];
    load_samples(samples, count, size, to);
}

// Cross-entropy of a pack: losses, whether the largest logit is the target's, and the gradient of the mean loss.
void cross_entropy(const Vec* logits, i64 classes, const i64* targets, i64 stride, i64 samples, float share,
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

// One environment's minibatch, forward and backward.
class Training {
    const Call& call;
    const i64 network, packs = packs_of(call.batch);
    std::vector<Leg> legs;
    Vec *work, *gradient, *other, *weighed;

    void place(Scratch& scratch) {
        i64 widest = 0, total = legs[0].in * packs, most = 0;
        for (const Leg& leg : legs) {
            widest = std::max({widest, leg.in, leg.out});
            most = std::max(most, Pass::room(*leg.program, packs));
            total += packs * leg.out + leg.program->kept_by_network(packs);
            if (!leg.gate()) continue;
            most = std::max(most, Pass::room(*leg.gate(), packs));
            total += packs + leg.gate()->kept_by_network(packs);
        }
        Vec* at = scratch.room(total + most + 2 * packs * widest + packs);
        const auto take = [&](i64 vectors) { return at += vectors, at - vectors; };
        Vec* x = take(legs[0].in * packs);
        for (Leg& leg : legs) {
            leg.x = x, leg.y = x = take(packs * leg.out);
            leg.kept = take(leg.program->kept_by_network(packs));
            if (!leg.gate()) continue;
            leg.gate_kept = take(leg.gate()->kept_by_network(packs)), leg.weights = take(packs);
        }
        work = take(most), gradient = take(packs * widest), other = take(packs * widest), weighed = take(packs);
    }

    Vec weight(const Leg& leg, i64 pack) const {
        return leg.gate() ? leg.weights[pack] : zero() + leg.slot->alpha[leg.row];
    }

    void forward(const Leg& leg) {
        if (leg.gate()) {
            Pass pass = gate_of(call, leg, work);
            pass.input = {leg.x, leg.in}, pass.output = {leg.weights, 1};
            pass.run_forward(0, packs, false, nothing, [&] { leg.weights[pass.pack] *= leg.slot->alpha[leg.row]; });
        }
        Pass pass = pass_of(call, leg, network, work);
        pass.input = {leg.x, leg.in};
        if (leg.block) {
            pass.output = {leg.y, leg.out};
            pass.aux = call.aux + network * call.aux_row + leg.block->aux;
            return pass.run_forward(0, packs, false, nothing, nothing);
        }
        pass.run_forward(0, packs, false, nothing, [&] {
            const Vec *h = leg.x + pass.pack * leg.in, *s = pass.value(leg.program->output);
            Vec* y = leg.y + pass.pack * leg.out;
            const Vec w = weight(leg, pass.pack);
            for (i64 n = 0; n < leg.out; ++n) y[n] = leg.trains() ? h[n] : lerp(h[n], s[n], w);
        });
    }

    void backward(const Leg& leg) {
        Pass pass = pass_of(call, leg, network, work);
        pass.input = {leg.x, leg.in};
        if (leg.slot) return backward_slot(leg, pass);
        const bool wanted = &leg != legs.data();
        pass.output = {leg.y, leg.out};
        pass.grad_output = {gradient, leg.out}, pass.grad_input = {other, leg.in};
        pass.grad_params = call.grad_host + network * call.host_row + leg.block->params;
        pass.run_backward(leg.program->backward[wanted], 0, packs, false, nothing, nothing, nothing);
        std::swap(gradient, other);
    }

    void backward_slot(const Leg& leg, Pass& pass) {
        const i64 size = leg.out;
        const bool trains = leg.trains(), isolated = leg.isolated(), gated = leg.gate();
        pass.grad_params = zeroed(leg.slot->grad_params, leg.slot->params_row, leg.row);
        pass.run_backward(
            leg.program->backward[!isolated + 2 * gated], 0, packs, false, nothing,
            [&] {
                const Vec *g = gradient + pass.pack * size, *h = leg.x + pass.pack * size;
                const Vec w = trains ? zero() + 1.0f : weight(leg, pass.pack);
                Vec *gs = pass.grad(leg.program->output), sum = {};
                for (i64 n = 0; n < size; ++n) gs[n] = g[n] * w;
                if (!gated) return;
                const Vec* s = pass.value(leg.program->output);
                for (i64 n = 0; n < size && !trains; ++n) sum += g[n] * (s[n] - h[n]);
                weighed[pass.pack] = sum;
            },
            [&] {
                Vec* g = gradient + pass.pack * size;
                const Vec *gx = pass.grad(0), rest = trains ? zero() + 1.0f : 1.0f - weight(leg, pass.pack);
                for (i64 n = 0; n < size; ++n) g[n] = isolated ? g[n] * rest : g[n] * rest + gx[n];
            });
        if (gated) backward_gate(leg);
    }

    void backward_gate(const Leg& leg) {
        Pass pass = gate_of(call, leg, work);
        const bool isolated = leg.isolated();
        pass.input = {leg.x, leg.in};
        pass.grad_params = zeroed(leg.slot->grad_gates, leg.slot->gate_row, leg.slot->gates[leg.row]);
        pass.run_backward(
            leg.slot->gate->backward[!isolated], 0, packs, false, nothing,
            [&] { *pass.grad(leg.slot->gate->output) = weighed[pass.pack] * leg.slot->alpha[leg.row]; },
            [&] {
                Vec* g = gradient + pass.pack * leg.in;
                for (i64 n = 0; n < leg.in && !isolated; ++n) g[n] += pass.grad(0)[n];
            });
    }

    static float* zeroed(float* rows, i64 stride, i64 row) {
        return static_cast<float*>(std::memset(rows + row * stride, 0, stride * sizeof(float)));
    }

  public:
    Training(const Call& c, i64 network, Scratch& scratch) : call(c), network(network) {
        for (i64 step = 0; step < call.length; ++step) {
            const Leg leg = leg_of(call, call.route[step], network);
            if (leg.program) legs.push_back(leg);
        }
        place(scratch);
    }

    void run() {
        const Leg &first = legs.front(), &last = legs.back();
        const i64 batch = call.batch;
        for (i64 pack = 0; pack < packs; ++pack) load_input(call, network, pack, first.in, first.x + pack * first.in);
        for (const Leg& leg : legs) forward(leg);
        for (i64 pack = 0; pack < packs; ++pack) {
            const i64 at = network * batch + pack * PACK;
            const i64* targets = call.targets + network * call.targets_network + pack * PACK * call.targets_sample;
            cross_entropy(last.y + pack * last.out, last.out, targets, call.targets_sample,
                          std::min(PACK, batch - pack * PACK), 1.0f / static_cast<float>(batch), call.losses + at,
                          call.hits + at, gradient + pack * last.out);
        }
        zeroed(call.grad_host, call.host_row, network);
        for (auto leg = legs.rbegin(); leg != legs.rend(); ++leg) backward(*leg);
    }
};

// All lanes of an environment, for one pack.
void infer(const Call& call, i64 network, i64 pack, Scratch& scratch) {
    const i64 *lanes = call.lanes + call.first[network], count = call.first[network + 1] - call.first[network];
    const i64 samples = std::min(PACK, call.batch - pack * PACK);
    i64 widest = 0, most = 0;
    const auto consider = [&](const Program& p) {
        widest = std::max({widest, p.registers[0].size(), p.registers[p.output].size()});
        most = std::max(most, Pass::room(p, 1) + p.kept_by_network(1));
    };
    for (i64 step = 0; step < call.length; ++step)
        for (i64 l = 0; l < count; ++l) {
            const Leg leg = leg_of(call, call.route[step], lanes[l]);
            if (leg.program) consider(*leg.program);
            if (leg.program && leg.gate()) consider(*leg.gate());
        }
    Vec* work = scratch.room(most + 2 * count * widest + 1);
    std::vector<Vec*> features(count), spare(count);
    for (i64 l = 0; l < count; ++l) features[l] = work + most + 2 * l * widest, spare[l] = features[l] + widest;
    Vec* weight = work + most + 2 * count * widest;
    const auto enter = [&](Pass& pass, i64 l) { pass.input = {features[l], 0}; };

    const i64 inputs = call.blocks[call.route[0]].program->registers[0].size();
    load_input(call, network, pack, inputs, features[0]);
    i64 live = 1, size = inputs;
    for (i64 step = 0; step < call.length; ++step) {
        for (; live < count && call.route[step] == -1 - call.forks[lanes[live]]; ++live) {
            const i64 parent = std::find(lanes, lanes + live, call.parents[lanes[live]]) - lanes;
            std::copy(features[parent], features[parent] + size, features[live]);
        }
        for (i64 l = 0; l < live; ++l) {
            const Leg leg = leg_of(call, call.route[step], lanes[l]);
            if (!leg.program) continue;
            if (leg.gate()) {
                Pass gate = gate_of(call, leg, work);
                enter(gate, l), gate.output = {weight, 0};
                gate.run_forward(pack, pack + 1, false, nothing, nothing);
            }
            Pass pass = pass_of(call, leg, network, work);
            enter(pass, l);
            if (leg.block) {
                pass.output = {spare[l], 0};
                pass.run_forward(pack, pack + 1, false, nothing, nothing);
                std::swap(features[l], spare[l]);
            } else {
                pass.run_forward(pack, pack + 1, false, nothing, nothing);
                const Vec w = (leg.gate() ? *weight : zero() + 1.0f) * leg.slot->alpha[leg.row];
                const Vec* s = pass.value(leg.program->output);
                for (i64 n = 0; n < size; ++n) features[l][n] = lerp(features[l][n], s[n], w);
            }
            if (leg.block && l + 1 == live) size = leg.out;
        }
    }
    for (i64 l = 0; l < count; ++l)
        store_pack(features[l], size, samples, size, call.logits + (lanes[l] * call.batch + pack * PACK) * size);
}

}  // namespace
}  // namespace esper

extern "C" {

void esper_train(const void* arguments) {
    const auto& call = *static_cast<const esper::Call*>(arguments);
#pragma omp parallel for num_threads(call.threads) schedule(dynamic) if (call.threads > 1 && call.networks > 1)
    for (esper::i64 network = 0; network < call.networks; ++network) {
        thread_local esper::Scratch scratch;
        esper::Training(call, network, scratch).run();
    }
}

void esper_infer(const void* arguments) {
    const auto& call = *static_cast<const esper::Call*>(arguments);
    const esper::i64 packs = esper::packs_of(call.batch), tasks = call.networks * packs;
#pragma omp parallel for num_threads(call.threads) schedule(dynamic) if (call.threads > 1 && tasks > 1)
    for (esper::i64 task = 0; task < tasks; ++task) {
        thread_local esper::Scratch scratch;
        esper::infer(call, task / packs, task % packs, scratch);
    }
}
}
