// Training: every environment's minibatches forward, through the loss, and backward, and what it makes of the gradients.
// Features stay in the cache from the first layer to the last and back. An environment's result depends neither on the
// others nor on the number of threads.
//
// A seed in TRAINING is not seen by the network. It learns by the gradient at the slot's output (straight-through), or
// by its own objective: the loss of the network as if it were on at its target alpha, all else given. For that the way
// behind the slot is taken once more (the objective pass), with batch statistics of its own, which move no buffers.

#include <omp.h>

#include <deque>

#include "learn.h"
#include "scratch.h"
#include "way.h"

namespace esper {
namespace {

// One environment's minibatch.
class Training {
    static constexpr i64 MOMENTS = sizeof(Moments) / sizeof(float);
    const Call& call;
    const i64 network;
    Team& team;
    const i64 member;
    Way main;
    std::vector<Way> passes;  // of the seeds that learn their own objectives
    std::vector<const Leg*> learners;

    // What no pass shares: features; then what they do, one after the other.
    void place(Scratch& scratch, Scratch& own) {
        Vec* at = nullptr;
        for (int again = 0; again < 2; ++again) {
            Memory memory{at};
            Vec* x = memory.take(main.packs * main.legs[0].in);
            main.place(memory, x, 0);
            const i64 shared = memory.used;
            i64 most = shared;
            for (i64 n = 0; n < static_cast<i64>(passes.size()); ++n) {
                Memory pass{at, shared};
                passes[n].at = main.at;
                passes[n].place(pass, learners[n]->own, learners[n]->point);
                most = std::max(most, pass.used);
            }
            memory.used = most;
            share(memory, own);
            if (!at) team.meet([&] { team.memory = scratch.room(memory.used); });
            at = team.memory;
        }
    }

    void share(Memory& memory, Scratch& own) {
        i64 widest = 0, room = 0, params = 0, aux = 0, openings = 0;
        const auto consider = [&](const Program& p) {
            room = std::max({room, Pass::room(p, main.packs), setup_room(p)});
            params = std::max(params, p.row()), aux = std::max(aux, p.aux);
        };
        for (const Leg& leg : main.legs) {
            widest = std::max({widest, leg.in, leg.out});
            consider(*leg.program);
            if (leg.gate()) consider(*leg.gate()), openings = std::max(openings, leg.gate_size());
        }
        const i64 shares = shares_of(main.packs), row = packs_of(params), channels = aux / 2;
        main.sums.row = row * PACK, main.sums.channels = channels;
        main.sums.parts = reinterpret_cast<float*>(memory.take((shares - 1) * row));
        main.sums.moments = reinterpret_cast<Moments*>(memory.take(packs_of(shares * channels * MOMENTS)));
        main.work = own.room(room), main.opened = memory.take(main.packs * openings);
        main.gradient = memory.take(main.packs * widest), main.other = memory.take(main.packs * widest);
        main.numbers = reinterpret_cast<float*>(memory.take(packs_of(params)));
        main.aux = reinterpret_cast<float*>(memory.take(packs_of(aux)));
        float* scores = reinterpret_cast<float*>(memory.take(2 * main.packs));
        for (Way& pass : passes) {
            pass.work = main.work, pass.opened = main.opened, pass.gradient = main.gradient, pass.other = main.other;
            pass.numbers = main.numbers, pass.aux = main.aux, pass.sums = main.sums;
            pass.losses = scores, pass.hits = scores + main.packs * PACK;
        }
    }

    // The way behind a slot: blocks, and the seeds that the network sees.
    Way behind(const Leg& from) const {
        Way way(call, network, true, team, member);
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
                main.own(leg.out, [&](i64 n) { gradient[n] += pass.back[leg.point][n]; });
        }
        main.pull(leg, gradient, call.own[network], false, false);
    }

  public:
    // `scratch`: for what the team shares; `own`: for what it does not.
    Training(const Call& c, i64 network, Team& team, i64 member, Scratch& scratch, Scratch& own)
        : call(c), network(network), team(team), member(member), main(c, network, false, team, member) {
        i64 point = 0;
        for (i64 step = 0; step < call.length; ++step) {
            Leg leg = leg_of(call, call.route[step], network);
            if (leg.block) ++point;
            leg.point = point;
            if (leg.program) main.legs.push_back(leg);
        }
        for (const Leg& leg : main.legs)
            if (main.learns_own(leg)) learners.push_back(&leg), passes.push_back(behind(leg));
        place(scratch, own);
    }

    void run(i64 step) {
        const Leg& first = main.legs.front();
        for (i64 pack = main.first; pack < main.last; ++pack)
            load_input(call, network, pack, first.in, first.h + pack * first.in);
        for (const Leg& leg : main.legs) main.forward(leg);
        for (i64 n = 0; n < static_cast<i64>(passes.size()); ++n) learn_own(*learners[n], passes[n]);
        main.score();
        main.backward();
        team.meet([&] {
            main.settle_ties();
            if (call.learning) learn(call, network, step);
        });
    }
};

// All minibatches of a network, by one member of a team.
void train(const Call& call, i64 network, Team& team, i64 member) {
    thread_local Scratch scratch, own;
    for (i64 step = 0; step < call.steps; ++step) {
        const Call at = minibatch(call, step);
        Training(at, network, team, member, scratch, own).run(step);
    }
}

// How many networks are left over where each thread takes one after the other, and a few threads would wait long.
i64 left_over(i64 networks, i64 threads) { return networks < 4 * threads ? networks % threads : 0; }

}  // namespace
}  // namespace esper

// Networks are dealt out to threads; those that are left over are taken by several threads each.
extern "C" void esper_train(const void* arguments) {
    using namespace esper;
    const auto& call = *static_cast<const Call*>(arguments);
    const i64 shares = shares_of(packs_of(call.batch));
    std::deque<Team> teams;
#pragma omp parallel num_threads(call.threads) if (call.threads > 1 && call.networks * shares > 1)
    {
        const i64 threads = omp_get_num_threads(), rest = left_over(call.networks, threads);
#pragma omp single
        for (i64 team = 0; team < rest; ++team) teams.emplace_back(std::min(shares, (threads - 1 - team) / rest + 1));
#pragma omp for schedule(dynamic)
        for (i64 network = 0; network < call.networks - rest; ++network) {
            Team alone(1);
            train(call, network, alone, 0);
        }
        const i64 thread = omp_get_thread_num(), team = rest ? thread % rest : 0, member = rest ? thread / rest : 0;
        if (rest && member < shares) train(call, call.networks - rest + team, teams[team], member);
    }
}
