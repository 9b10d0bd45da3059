// Training: every environment's minibatch forward, through the loss, and backward, and gradients of what learns.
// Features stay in the cache from the first layer to the last and back. An environment's result depends neither on the
// others nor on the number of threads.
//
// A seed in TRAINING is not seen by the network. It learns by the gradient at the slot's output (straight-through), or
// by its own objective: the loss of the network as if it were on at its target alpha, all else given. For that the way
// behind the slot is taken once more (the objective pass), with batch statistics of its own, which move no buffers.

#include "way.h"

namespace esper {
namespace {

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
        i64 widest = 0, room = 0, params = 0, aux = 0, openings = 0;
        const auto consider = [&](const Program& p) {
            room = std::max({room, Pass::room(p, main.packs), setup_room(p)});
            params = std::max(params, p.params), aux = std::max(aux, p.aux);
        };
        for (const Leg& leg : main.legs) {
            widest = std::max({widest, leg.in, leg.out});
            consider(*leg.program);
            if (leg.gate()) consider(*leg.gate()), openings = std::max(openings, leg.gate_size());
        }
        main.work = memory.take(room), main.opened = memory.take(main.packs * openings);
        main.gradient = memory.take(main.packs * widest), main.other = memory.take(main.packs * widest);
        main.numbers = reinterpret_cast<float*>(memory.take(packs_of(params)));
        main.aux = reinterpret_cast<float*>(memory.take(packs_of(aux)));
        float* scores = reinterpret_cast<float*>(memory.take(2 * main.packs));
        for (Way& pass : passes) {
            pass.work = main.work, pass.opened = main.opened, pass.gradient = main.gradient, pass.other = main.other;
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
        main.pull(leg, gradient, call.own[network], false, false);
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
        main.backward(), main.settle_ties();
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
