// The threading seam's one implementation: which pool runs (none by default), when a range stays
// serial, the floating-point modes of every piece, and what pieces throw. Called by every driver;
// calls the pool that the host installed.
#include "parallel.h"

#include <atomic>
#include <cfenv>
#include <exception>
#include <mutex>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace octavo {
namespace {

struct Pool {
  std::atomic<ParallelFor> run{nullptr};
  std::atomic<int (*)()> max_threads{nullptr};
};
Pool pool;

std::atomic<bool> forked{false};
thread_local bool inside_piece = false;

// A pool's threads do not survive fork(), and both libgomp and Torch's pool hang in the child if
// the parent has used them: a forked child always runs serially.
const bool fork_handler_installed = [] {
#if defined(__unix__) || defined(__APPLE__)
  return pthread_atfork(nullptr, nullptr, [] { forked.store(true); }) == 0;
#else
  return false;
#endif
}();

/// Rounding to nearest and no flush-to-zero while it lives; puts back what it found.
class DefaultModes {
 public:
#if defined(__x86_64__)
  DefaultModes() : saved_(_mm_getcsr()) {
    // MXCSR: bits 13-14 rounding, 15 flush-to-zero, 6 denormals-are-zero.
    constexpr unsigned kModes = 0xe040;
    if ((saved_ & kModes) != 0) _mm_setcsr(saved_ & ~kModes);
    x87_ = std::fegetround();
    if (x87_ != FE_TONEAREST) std::fesetround(FE_TONEAREST);
  }
  ~DefaultModes() {
    if (x87_ != FE_TONEAREST) std::fesetround(x87_);
    // Exception flags that the piece raised stay raised, as they would if the modes had been these
    // all along.
    constexpr unsigned kFlags = 0x3f;
    const unsigned now = _mm_getcsr();
    const unsigned restored = saved_ | (now & kFlags);
    if (now != restored) _mm_setcsr(restored);
  }

 private:
  unsigned saved_;
  int x87_;
#elif defined(__aarch64__)
  DefaultModes() : saved_(read()) {
    // FPCR: bits 22-23 rounding, 24 flush-to-zero, 19 flush-to-zero of half precision.
    constexpr uint64_t kModes = (uint64_t{7} << 22) | (uint64_t{1} << 19);
    if ((saved_ & kModes) != 0) write(saved_ & ~kModes);
  }
  ~DefaultModes() {
    if (read() != saved_) write(saved_);
  }

 private:
  static uint64_t read() {
    uint64_t value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void write(uint64_t value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }
  uint64_t saved_;
#else
  DefaultModes() : rounding_(std::fegetround()) { std::fesetround(FE_TONEAREST); }
  ~DefaultModes() { std::fesetround(rounding_); }

 private:
  int rounding_;
#endif

 public:
  DefaultModes(const DefaultModes&) = delete;
  DefaultModes& operator=(const DefaultModes&) = delete;
};

/// What the pieces of one range share.
struct Pieces {
  RangeFunction body;
  void* context;
  std::mutex mutex;
  std::exception_ptr failure;  // the first one
};

/// Runs one piece: modes set, nested ranges serial, failures kept. A pool's thread that threw would
/// end the process.
void run_piece(void* context, int64_t begin, int64_t end) {
  auto& pieces = *static_cast<Pieces*>(context);
  const bool was_inside = inside_piece;
  inside_piece = true;
  try {
    const DefaultModes modes;
    pieces.body(pieces.context, begin, end);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(pieces.mutex);
    if (pieces.failure == nullptr) pieces.failure = std::current_exception();
  }
  inside_piece = was_inside;
}

bool serial_here() { return inside_piece || forked.load(std::memory_order_relaxed); }

}  // namespace

void set_parallel(ParallelFor run, int (*max_threads)()) {
  pool.run.store(run);
  pool.max_threads.store(max_threads);
}

int max_threads() {
  if (serial_here()) return 1;
  int (*count)() = pool.max_threads.load(std::memory_order_relaxed);
  return count == nullptr ? 1 : count();
}

void parallel_for(int64_t begin, int64_t end, int64_t grain, RangeFunction body, void* context) {
  if (begin >= end) return;
  // Inside a piece the modes are set already.
  if (inside_piece) {
    body(context, begin, end);
    return;
  }
  ParallelFor run = pool.run.load(std::memory_order_relaxed);
  const int64_t least = grain < 1 ? 1 : grain;
  if (run == nullptr || end - begin <= least || serial_here() || max_threads() <= 1) {
    // A serial range is a piece as far as modes go, but ranges inside it may still use the pool.
    const DefaultModes modes;
    body(context, begin, end);
    return;
  }
  Pieces pieces{body, context, {}, nullptr};
  run(begin, end, least, run_piece, &pieces);
  if (pieces.failure != nullptr) std::rethrow_exception(pieces.failure);
}

}  // namespace octavo
