// The simulator's threads: fibers, their scheduler, barriers and warp-wide instructions.
#include "simulator.h"

#include <setjmp.h>
#include <stdlib.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace simulator {

namespace {

constexpr size_t kStack = 128 << 10;

enum class State { kReady, kInWarp, kAtBarrier, kDone };

struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  bool started = false;
  State state = State::kReady;
  std::unique_ptr<char[]> stack;
  std::deque<std::vector<Copy>> copies;
};

struct Warp {
  const char* instruction = nullptr;
  void* operands[kWarp];
  int arrived = 0;
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
int running = 0;
const std::function<void()>* body = nullptr;

// swapcontext asks the kernel for the signal mask at every switch; _setjmp does not, but the address sanitizer follows
// only the former.
#ifdef __SANITIZE_ADDRESS__
ucontext_t scheduler_context;
#else
jmp_buf scheduler_jump;
#endif

void enter(int thread) {
  Fiber& fiber = fibers[thread];
  running = thread;
  threadIdx.x = thread;
#ifdef __SANITIZE_ADDRESS__
  fiber.started = true;
  swapcontext(&scheduler_context, &fiber.context);
#else
  if (_setjmp(scheduler_jump)) return;
  if (fiber.started) _longjmp(fiber.jump, 1);
  fiber.started = true;
  setcontext(&fiber.context);
#endif
}

void leave(State state) {
  Fiber& fiber = fibers[running];
  fiber.state = state;
#ifdef __SANITIZE_ADDRESS__
  swapcontext(&fiber.context, &scheduler_context);
#else
  if (!_setjmp(fiber.jump)) _longjmp(scheduler_jump, 1);
#endif
}

void thread_main() {
  (*body)();
  leave(State::kDone);
}

void start_block(int threads) {
  if (static_cast<int>(fibers.size()) != threads) fibers = std::vector<Fiber>(threads);
  warps.assign(threads / kWarp, Warp());
  for (Fiber& fiber : fibers) {
    if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStack);
    fiber.started = false;
    fiber.state = State::kReady;
    fiber.copies.assign(1, {});
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, thread_main, 0);
  }
}

bool ready(int warp) {
  return std::any_of(fibers.begin() + warp * kWarp, fibers.begin() + (warp + 1) * kWarp,
                     [](const Fiber& fiber) { return fiber.state == State::kReady; });
}

// Runs all threads to their end; each chosen warp as far as it gets alone.
void run_block(std::mt19937_64& random) {
  std::vector<int> lanes(kWarp);
  std::iota(lanes.begin(), lanes.end(), 0);
  for (;;) {
    std::vector<int> choices;
    for (size_t warp = 0; warp < warps.size(); ++warp) {
      if (ready(warp)) choices.push_back(warp);
    }
    if (choices.empty()) {
      const auto count = [](State state) {
        return std::count_if(fibers.begin(), fibers.end(), [&](const Fiber& fiber) { return fiber.state == state; });
      };
      const auto at_barrier = count(State::kAtBarrier), done = count(State::kDone);
      if (done == static_cast<long>(fibers.size())) return;
      if (at_barrier + done < static_cast<long>(fibers.size())) {
        error = "deadlock: part of a warp waits for the rest of it";
        return;
      }
      if (done) {
        error = "deadlock: some threads wait at a barrier that others never reach";
        return;
      }
      for (Fiber& fiber : fibers) fiber.state = State::kReady;
      continue;
    }
    const int warp = choices[random() % choices.size()];
    while (ready(warp)) {
      std::shuffle(lanes.begin(), lanes.end(), random);
      for (const int lane : lanes) {
        if (fibers[warp * kWarp + lane].state == State::kReady) enter(warp * kWarp + lane);
        if (!error.empty()) return;
      }
    }
  }
}

}  // namespace

void fail(const std::string& message) {
  error = message;
  leave(State::kDone);
  abort();  // the scheduler never comes back to a failed launch
}

void block_barrier() { leave(State::kAtBarrier); }

void warp_instruction(const char* name, void* operands, Execute execute) {
  const int number = running / kWarp;
  Warp& warp = warps[number];
  if (warp.arrived == 0) warp.instruction = name;
  if (warp.instruction != name) fail(std::string("a warp's threads meet in ") + warp.instruction + " and " + name);
  warp.operands[running % kWarp] = operands;
  if (++warp.arrived < kWarp) {
    leave(State::kInWarp);
    return;
  }
  execute(warp.operands);
  warp.arrived = 0;
  for (int lane = 0; lane < kWarp; ++lane) fibers[number * kWarp + lane].state = State::kReady;
}

std::deque<std::vector<Copy>>& copy_groups() { return fibers[running].copies; }

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  std::mt19937_64 random(seed);
  body = &kernel;
  blockDim = block;
  const size_t blocks = size_t{grid.x} * grid.y;
  for (size_t number = 0; number < blocks && error.empty(); ++number) {
    blockIdx = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x)};
    // Its exact size, so that the address sanitizer sees its end.
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, std::max<size_t>(shared_bytes, 1))) abort();
    std::memset(memory, 0xff, shared_bytes);
    shared_memory = static_cast<unsigned char*>(memory);
    start_block(block.x);
    run_block(random);
    free(memory);
  }
}

}  // namespace simulator
