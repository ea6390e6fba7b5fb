// How threads take a walk's phases together.
//
// A phase begins when all of the one before is done, and is cut into as many shares as there are
// seats. All phases pass in one parallel region: a share done and the next phase begun costs a
// tenth of ending a region and starting another. Each thread takes the share of its own seat; one
// that finds all else done takes those that nobody has begun. So nothing waits but for work that is
// under way, and a thread that is late, sleeps or never comes is done without.
#pragma once

#include "cpu/work.h"

namespace rnnfast {
namespace {

// Apart from all others, so that whoever reads it is not disturbed by what they are told.
struct alignas(64) Count {
  int64_t value;

  int64_t now() const { return __atomic_load_n(&value, __ATOMIC_ACQUIRE); }
};

RNNFAST_INLINE void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

struct Phases {
  Count done;    // shares, of all phases
  Count begun;   // the phase that is under way; all before it are done
  Count* taken;  // by seat: of how many phases its share has been taken
  int64_t count, seats;
  void (*share)(const void* body, int64_t phase, int64_t seat);
  const void* body;

  // Does the share unless somebody has begun it.
  bool take(int64_t phase, int64_t seat) {
    int64_t expected = phase;
    if (taken[seat].now() != phase ||
        !__atomic_compare_exchange_n(&taken[seat].value, &expected, phase + 1, false,
                                     __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
      return false;
    share(body, phase, seat);
    if (__atomic_add_fetch(&done.value, 1, __ATOMIC_ACQ_REL) == (phase + 1) * seats)
      __atomic_store_n(&begun.value, phase + 1, __ATOMIC_RELEASE);
    return true;
  }

  // Takes part until all is done, in the seats [begin, end).
  void attend(const Runtime& runtime, int64_t begin, int64_t end) {
    // How often to look before taking what is another's: for longer than threads are apart that
    // began together, unless one was not there the last time.
    constexpr int64_t kPatience = 1 << 10;
    int64_t patience = kPatience;
    for (int64_t phase = begun.now(); phase < count;) {
      for (int64_t seat = begin; seat < end; ++seat) take(phase, seat);
      int64_t next, looked = 0;
      while ((next = begun.now()) == phase) {
        if (looked++ < patience) {
          pause();
          continue;
        }
        bool absent = false;
        for (int64_t i = end; i < begin + seats; ++i) absent |= take(phase, i % seats);
        patience = absent ? 0 : kPatience;
        if (!absent) runtime.yield();
      }
      phase = next;
    }
  }
};

// Multiply-adds that take as long as threads do to meet, and those that are worth a thread more.
constexpr int64_t kMeetingWork = 1 << 15, kShareWork = 1 << 14;

// Calls body(phase, begin, end) for ranges that cover [0, tasks(phase)), one phase after another;
// inline where there is not enough work, counted in multiply-adds and here that of a phase.
template <class Tasks, class Body>
void for_each_phase(const Runtime& runtime, int64_t phases, int64_t work, const Tasks& tasks,
                    const Body& body) {
  const int64_t seats = min_of(runtime.num_threads, work / kShareWork);
  if (seats <= 1 || work * phases < kParallelWork + (phases - 1) * kMeetingWork) {
    for (int64_t phase = 0; phase < phases; ++phase) body(phase, int64_t{0}, tasks(phase));
    return;
  }
  const auto share = [&](int64_t phase, int64_t seat) {
    const int64_t all = tasks(phase), begin = all * seat / seats, end = all * (seat + 1) / seats;
    if (begin < end) body(phase, begin, end);
  };
  typedef decltype(share) Share;
  Phases* const shared = allocate<Phases>(runtime, 1);
  Count* const taken = allocate<Count>(runtime, seats);
  memset(taken, 0, sizeof(Count) * static_cast<size_t>(seats));
  *shared = {{0},
             {0},
             taken,
             phases,
             seats,
             [](const void* body, int64_t phase, int64_t seat) {
               (*static_cast<Share*>(body))(phase, seat);
             },
             &share};
  struct Attendance {
    const Runtime& runtime;
    Phases& phases;
  } attendance{runtime, *shared};
  runtime.run(
      &runtime, seats,
      [](void* argument, int64_t begin, int64_t end) {
        const Attendance& at = *static_cast<const Attendance*>(argument);
        at.phases.attend(at.runtime, begin, end);
      },
      &attendance);
}

}  // namespace
}  // namespace rnnfast
