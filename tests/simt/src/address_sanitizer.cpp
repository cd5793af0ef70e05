#include "address_sanitizer.h"

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

#include <string>

#include "engine.h"

#pragma weak __asan_poison_memory_region
#pragma weak __asan_unpoison_memory_region
#pragma weak __asan_set_error_report_callback
#pragma weak __asan_get_report_access_size
#pragma weak __asan_get_report_access_type
#pragma weak __asan_get_report_address
#pragma weak __asan_get_report_description
#pragma weak __asan_get_report_pc
#pragma weak __sanitizer_start_switch_fiber
#pragma weak __sanitizer_finish_switch_fiber

namespace simt {
namespace {

// Called before AddressSanitizer goes on, or ends the process if it cannot.
void report(const char*) {
  const void* pc = __asan_get_report_pc();
  std::string what = std::string("AddressSanitizer: ") + __asan_get_report_description() + ": " +
                     (__asan_get_report_access_type() ? "write" : "read") + " of " +
                     std::to_string(__asan_get_report_access_size()) + " bytes";
  if (current) {
    Worker& worker = *current->worker;
    std::string at = worker.locate(reinterpret_cast<uintptr_t>(__asan_get_report_address()));
    worker.record(what + (at.empty() ? "" : " " + at), pc);
  } else {
    record_fault(what + " on the host at " + where(pc));
  }
}

[[maybe_unused]] const bool listening = [] {
  if (under_address_sanitizer()) __asan_set_error_report_callback(report);
  return under_address_sanitizer();
}();

}  // namespace

bool under_address_sanitizer() { return __asan_poison_memory_region != nullptr; }

void poison(const void* p, size_t bytes) {
  if (under_address_sanitizer()) __asan_poison_memory_region(p, bytes);
}

void unpoison(const void* p, size_t bytes) {
  if (under_address_sanitizer()) __asan_unpoison_memory_region(p, bytes);
}

void jump(Context& to) {
  if (under_address_sanitizer()) __sanitizer_start_switch_fiber(nullptr, to.stack, to.stack_bytes);
  __builtin_longjmp(to.state, 1);
}

void landed(Context* from) {
  if (!under_address_sanitizer()) return;
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (from) from->stack = stack, from->stack_bytes = bytes;
}

}  // namespace simt
