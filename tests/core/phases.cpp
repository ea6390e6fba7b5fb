// Phases walked by the threads of hosts of several kinds; says how many ways have passed.
//
// Each phase sums neighbours of the one before, so that what is done twice, too early or not at all
// changes numbers.
#include "cpu/phases.h"

#include <chrono>
#include <cstdio>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

namespace rnnfast {
namespace {

using Body = void (*)(void*, int64_t, int64_t);
using Range = std::pair<int64_t, int64_t>;

void later(int64_t microseconds) {
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

struct Host {
  std::vector<std::vector<char>> blocks;
  void (*run)(int64_t tasks, const std::function<void(Range)>& body);
};

// The ways in which a host may call ranges that cover [0, tasks).
void all_at_once(int64_t tasks, const std::function<void(Range)>& body) { body({0, tasks}); }

void forwards(int64_t tasks, const std::function<void(Range)>& body) {
  for (int64_t i = 0; i < tasks; ++i) body({i, i + 1});
}

void backwards(int64_t tasks, const std::function<void(Range)>& body) {
  for (int64_t i = tasks; i-- > 0;) body({i, i + 1});
}

template <int64_t width, int64_t pause>
void on_threads(int64_t tasks, const std::function<void(Range)>& body) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < tasks; i += width)
    threads.emplace_back([&, i] {
      later(pause * (tasks - i));
      body({i, min_of(i + width, tasks)});
    });
  for (std::thread& thread : threads) thread.join();
}

int64_t work_of(int64_t phase, int64_t i) { return (phase * 7 + i * 3) % 11; }

// What phase after phase makes of 0, 1, 2, ...; `pause`: some tasks take that long.
bool right(Host& host, int64_t threads, int64_t phases, int64_t tasks, int64_t pause) {
  Runtime runtime{};
  runtime.num_threads = threads;
  runtime.host = &host;
  runtime.yield = std::this_thread::yield;
  runtime.allocate = [](const Runtime* self, size_t bytes) -> void* {
    auto& blocks = static_cast<Host*>(self->host)->blocks;
    blocks.emplace_back(bytes + 64);
    char* const p = blocks.back().data();
    return p + (64 - reinterpret_cast<uintptr_t>(p) % 64) % 64;
  };
  runtime.run = [](const Runtime* self, int64_t tasks, Body body, void* argument) {
    static_cast<Host*>(self->host)->run(tasks, [&](Range range) {
      body(argument, range.first, range.second);
    });
  };
  const auto all = [&](int64_t phase) { return phase % 3 == 2 ? 1 : tasks; };
  const auto step = [&](std::vector<int64_t>* values, int64_t phase, int64_t i) {
    const auto& from = values[phase % 2];
    int64_t sum = values[(phase + 1) % 2][i] + work_of(phase, i);
    for (int64_t j = max_of(i - 1, 0); j < min_of(i + 2, tasks); ++j) sum += from[j];
    values[(phase + 1) % 2][i] = sum % 1000003;
  };
  std::vector<int64_t> values[2], expected[2];
  for (int64_t i = 0; i < tasks; ++i)
    for (int k = 0; k < 2; ++k) values[k].push_back(i), expected[k].push_back(i);
  for (int64_t phase = 0; phase < phases; ++phase)
    for (int64_t i = 0; i < all(phase); ++i) step(expected, phase, i);
  for_each_phase(runtime, phases, int64_t{1} << 20, all,
                 [&](int64_t phase, int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     if (pause && work_of(phase, i) == 0) later(pause);
                     step(values, phase, i);
                   }
                 });
  return values[0] == expected[0] && values[1] == expected[1];
}

}  // namespace
}  // namespace rnnfast

int main() {
  using namespace rnnfast;
  const std::pair<const char*, decltype(Host::run)> hosts[] = {
      {"all at once", all_at_once},
      {"forwards", forwards},
      {"backwards", backwards},
      {"threads", on_threads<1, 0>},
      {"threads with two seats", on_threads<2, 0>},
      {"threads that come late", on_threads<1, 2000>}};
  int passed = 0;
  for (const auto& [name, run] : hosts)
    for (const int64_t threads : {1, 2, 3, 8})
      for (const int64_t tasks : {1, 2, 5, 16})
        for (const auto& [phases, pause] : {Range{1, 0}, Range{2000, 0}, Range{20, 500}}) {
          Host host{{}, run};
          if (!right(host, threads, phases, tasks, pause)) {
            std::printf("wrong: %s, %d threads, %d tasks, %d phases\n", name, int(threads),
                        int(tasks), int(phases));
            return 1;
          }
          ++passed;
        }
  std::printf("%d passed\n", passed);
}
