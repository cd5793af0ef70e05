#include "pybatch/graph.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace pybatch {
namespace {

thread_local Graph* current = nullptr;

}  // namespace

void Graph::begin() {
  if (current != nullptr) throw std::logic_error("a graph is being recorded already");
  current = this;
}

void Graph::end() { current = nullptr; }

void Graph::clear() {
  calls_.clear();
  checks_.clear();
  kept_.clear();
}

Graph* Graph::recording() { return current; }

bool Graph::keeps(Range range) const {
  return std::any_of(kept_.begin(), kept_.end(), [range](const Kept& kept) { return kept.memory.range == range; });
}

void Graph::keep(const char* argument, const Memory& memory) { kept_.push_back({argument, memory, false, false}); }

void Graph::writes(const void* p) {
  for (Kept& kept : kept_) kept.written_next |= kept.memory.range.holds(p);
}

bool Graph::is_written(const void* p) const {
  return std::any_of(kept_.begin(), kept_.end(),
                     [p](const Kept& kept) { return kept.written && kept.memory.range.holds(p); });
}

void Graph::run_checks() const {
  for (const Kept& kept : kept_) {
    if (kept.memory.start(kept.memory.owner.get()) == kept.memory.range.data) continue;
    throw std::runtime_error(std::string(kept.argument) +
                             ": expected the memory that it had at the recording; its storage has been resized");
  }
  for (const auto& check : checks_) check();
}

void Graph::replay() const {
  run_checks();
  for (const Call& call : calls_) call.run();
}

std::map<std::string, double> Graph::timed_replay() const {
  using Clock = std::chrono::steady_clock;
  std::map<std::string, double> seconds;
  const auto time = [&](const char* name, const auto& run) {
    const auto start = Clock::now();
    run();
    seconds[name] += std::chrono::duration<double>(Clock::now() - start).count();
  };
  time("checks", [this] { run_checks(); });
  for (const Call& call : calls_) time(call.name, call.run);
  return seconds;
}

}  // namespace pybatch
