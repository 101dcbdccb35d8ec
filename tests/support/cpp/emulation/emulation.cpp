// The emulated device: fibers, barriers, shuffles, and what of the CUDA runtime the package calls.
#include "cuda_runtime.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

// Under ThreadSanitizer this file tells it about fibers and order, and is not instrumented itself.
#if defined(TELL_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

extern char __start_cuda_shared[], __stop_cuda_shared[];

dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace emulation {

Device device;

namespace {

constexpr size_t kStack = 1 << 16, kPage = 4096;
constexpr unsigned kWarp = 32, kMostWarps = 32;

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "emulated CUDA: %s (block %u, thread %u)\n", message, blockIdx.x, threadIdx.x);
  std::abort();
}

// Pages that no access is known of.
char* map_anew(char* at, size_t bytes) {
  void* const pages = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);
  if (pages == MAP_FAILED) fail("no memory");
  return static_cast<char*>(pages);
}

struct Fiber {
  ucontext_t context;
  void* jump[5];
  bool is_started = false;
  char* stack = nullptr;
  bool is_done = false;
  unsigned exchanges = 0;
  bool has_fenced = false;
  char* accessed = nullptr;  // by the last atomic operation
#if defined(TELL_THREAD_SANITIZER)
  void* sanitizer = nullptr;
#endif
};

std::array<Fiber, kMostWarps * kWarp> fibers;
// Of the block: its threads, those that have ended, those that wait at a barrier, and the barriers that all have passed.
unsigned threads, ended, waiting, passed;
// What the lanes of each warp offer each other, by turns: one may still read while others already offer anew.
uint64_t offered[kMostWarps][2][kWarp];
const std::function<void()>* body;
#if defined(TELL_THREAD_SANITIZER)
void* scheduler_sanitizer;
// One for each thread of a launch, as far as there may be so many: one that served another block would seem ordered after
// it. The next launch, which is ordered after this one, takes the same again, each with its own stack.
struct SanitizerFiber {
  void* number;
  char* stack;
};
std::vector<SanitizerFiber> sanitizer_fibers;
size_t taken_fibers;
constexpr size_t kMostSanitizerFibers = 7168;

const SanitizerFiber& take_sanitizer_fiber() {
  if (taken_fibers == kMostSanitizerFibers) taken_fibers = 0;
  if (taken_fibers == sanitizer_fibers.size()) {
    sanitizer_fibers.push_back({__tsan_create_fiber(0), map_anew(nullptr, kStack)});
  }
  return sanitizer_fibers[taken_fibers++];
}
#endif
// What happens before what: the beginning of a launch before its threads, and they before its end; arrivals at a barrier of
// a block before what follows it.
char launch_begin, launch_end, barrier_of_block[1 << 16];

void release(char* order) {
#if defined(TELL_THREAD_SANITIZER)
  __tsan_release(order);
#else
  (void)order;
#endif
}
void acquire(char* order) {
#if defined(TELL_THREAD_SANITIZER)
  __tsan_acquire(order);
#else
  (void)order;
#endif
}

// Jumps of the compiler's own: they leave the signal mask alone, and no sanitizer looks at the stack at each of them. A
// function that sets one may not jump itself, and from none of them may the compiler conclude what happens in between.
#define ELSEWHERE __attribute__((noipa, no_sanitize("address")))
void* back_to_scheduler[5];

[[noreturn]] ELSEWHERE void jump(void** to) { __builtin_longjmp(to, 1); }

ELSEWHERE void enter(unsigned thread) {
  threadIdx = dim3(thread);
  Fiber& fiber = fibers[thread];
#if defined(TELL_THREAD_SANITIZER)
  __tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  if (__builtin_setjmp(back_to_scheduler) != 0) return;
  if (fiber.is_started) jump(fiber.jump);
  fiber.is_started = true;
  setcontext(&fiber.context);
}

// Lets the other threads of the block run.
ELSEWHERE void yield() {
#if defined(TELL_THREAD_SANITIZER)
  __tsan_switch_to_fiber(scheduler_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  if (__builtin_setjmp(fibers[threadIdx.x].jump) == 0) jump(back_to_scheduler);
}

void thread_main() {
  acquire(&launch_begin);
  (*body)();
  release(&launch_end);
  fibers[threadIdx.x].is_done = true;
  ++ended;
  yield();
}

void start(Fiber& fiber) {
#if defined(TELL_THREAD_SANITIZER)
  const SanitizerFiber& taken = take_sanitizer_fiber();
  fiber.sanitizer = taken.number;
  fiber.stack = taken.stack;
#else
  if (fiber.stack == nullptr) fiber.stack = map_anew(nullptr, kStack);
#endif
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, thread_main, 0);
  fiber.is_started = fiber.is_done = false;
  fiber.exchanges = 0;
  fiber.has_fenced = false;
  fiber.accessed = nullptr;
}

#if defined(TELL_THREAD_SANITIZER)
// A block's shared memory is its own. What else lies in its pages is kept.
void forget_shared_memory() {
  const uintptr_t begin = uintptr_t(__start_cuda_shared) / kPage * kPage;
  const uintptr_t end = (uintptr_t(__stop_cuda_shared) + kPage - 1) / kPage * kPage;
  static const char* const saved = map_anew(nullptr, end - begin);
  volatile char* const bytes = reinterpret_cast<char*>(begin);
  volatile char* const copy = const_cast<char*>(saved);
  for (size_t i = 0; i < end - begin; ++i) copy[i] = bytes[i];
  map_anew(reinterpret_cast<char*>(begin), end - begin);
  for (size_t i = 0; i < end - begin; ++i) bytes[i] = copy[i];
}
#endif

// Sanitizers know of memset, and there are red zones between the variables.
#if defined(TELL_THREAD_SANITIZER) || defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize("address"))) void poison_shared_memory() {
  for (volatile char* byte = __start_cuda_shared; byte != __stop_cuda_shared; ++byte) *byte = char(0xcd);
}
#else
void poison_shared_memory() {
  std::memset(__start_cuda_shared, 0xcd, size_t(__stop_cuda_shared - __start_cuda_shared));
}
#endif

void run_block() {
#if defined(TELL_THREAD_SANITIZER)
  forget_shared_memory();
#endif
  poison_shared_memory();
  ended = waiting = passed = 0;
  release(&launch_begin);
  for (unsigned t = 0; t < threads; ++t) start(fibers[t]);
  for (bool any = true; any;) {
    any = false;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].is_done) continue;
      any = true;
      enter(t);
    }
  }
}

}  // namespace

void run(dim3 grid, dim3 block, const std::function<void()>& thread) {
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  gridDim = grid;
  blockDim = block;
  threads = block.x;
  body = &thread;
#if defined(TELL_THREAD_SANITIZER)
  scheduler_sanitizer = __tsan_get_current_fiber();
  taken_fibers = 0;
#endif
  std::vector<unsigned> order(grid.x);
  std::iota(order.begin(), order.end(), 0u);
  if (device.order == Device::kBackward) std::reverse(order.begin(), order.end());
  if (device.order == Device::kShuffled) std::shuffle(order.begin(), order.end(), std::mt19937(device.launches));
  for (const unsigned number : order) {
    blockIdx = dim3(number);
    run_block();
  }
  acquire(&launch_end);
}

void barrier() {
  char* const order = &barrier_of_block[blockIdx.x % sizeof(barrier_of_block)];
  release(order);
  const unsigned before = passed;
  if (++waiting == threads) {
    waiting = 0;
    ++passed;
  }
  while (passed == before) {
    if (ended != 0) fail("a barrier that a thread of the block never reaches");
    yield();
  }
  acquire(order);
}

// As in the memory model: what is before a fence and then an atomic access is before what follows another thread's access of
// the same address and then a fence.
void fence() {
  Fiber& mine = fibers[threadIdx.x];
  if (mine.accessed != nullptr) acquire(mine.accessed);
  mine.has_fenced = true;
}

namespace {

void begin_atomic(void* address) {
  Fiber& mine = fibers[threadIdx.x];
  mine.accessed = static_cast<char*>(address);
  if (mine.has_fenced) release(mine.accessed);
}

}  // namespace

unsigned increment(unsigned* address, unsigned limit) {
  begin_atomic(address);
  const unsigned before = *address;
  *address = before >= limit ? 0 : before + 1;
  return before;
}

uint64_t replace(uint64_t* address, uint64_t (*by)(uint64_t, uint64_t, uint64_t), uint64_t a, uint64_t b) {
  begin_atomic(address);
  const uint64_t before = *address;
  *address = by(before, a, b);
  return before;
}

void lower(int* address, int value) {
  begin_atomic(address);
  *address = std::min(*address, value);
}

const uint64_t* exchange(unsigned lanes, uint64_t bits) {
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (!(lanes >> lane & 1u)) fail("an exchange by a lane that its mask leaves out");
  const unsigned number = ++fibers[threadIdx.x].exchanges;
  offered[warp][number % 2][lane] = bits;
  for (bool waits = true; waits;) {
    waits = false;
    for (unsigned other = 0; other < kWarp; ++other) {
      if (!(lanes >> other & 1u)) continue;
      if (warp * kWarp + other >= threads) fail("an exchange with a lane that the block does not have");
      const Fiber& fiber = fibers[warp * kWarp + other];
      if (fiber.exchanges >= number) continue;
      if (fiber.is_done) fail("an exchange that a lane of the warp never reaches");
      waits = true;
    }
    if (waits) yield();
  }
  return offered[warp][number % 2];
}

int reduced(unsigned lanes, int value, bool largest) {
  const uint64_t* const values = exchange(lanes, uint32_t(value));
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const int other = int(uint32_t(values[lane]));
    if ((lanes >> lane & 1u) != 0) value = largest ? std::max(value, other) : std::min(value, other);
  }
  return value;
}

}  // namespace emulation

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulation::device.multiprocessors;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulation::device.is_capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  ++emulation::device.memsets;
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
