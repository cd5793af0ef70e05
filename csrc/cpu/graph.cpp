#include "pybatch/graph.h"

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

Graph* Graph::recording() { return current; }

void Graph::replay() const {
  for (const auto& call : calls_) call();
}

}  // namespace pybatch
