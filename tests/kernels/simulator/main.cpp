// Runs one call of criss_cross_attention.h in the simulator: a request on standard input, its results on standard
// output.
//
// A request is int64 numbers: operation (0 forward, 1 with residual, 2 backward), data type, B, H, W, D, C, seed,
// gamma's type; then for every tensor of the call in order its bytes, the byte offset of its first element and its
// three strides, followed by its storage. The answer is the number of launches and the storages of the tensors written.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "criss_cross_attention.h"

namespace {

using criss_cross::DataType;
using criss_cross::MutableView;
using criss_cross::View;

int64_t read_integer() {
  int64_t number = 0;
  if (std::fread(&number, sizeof(number), 1, stdin) != 1) std::exit(2);
  return number;
}

struct Tensor {
  int64_t bytes, offset, batch, row, column;
  std::unique_ptr<unsigned char, void (*)(void*)> storage{nullptr, std::free};

  Tensor() : bytes(read_integer()), offset(read_integer()), batch(read_integer()), row(read_integer()),
             column(read_integer()) {
    // Its exact size, so that the address sanitizer sees its end.
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, bytes)) std::exit(2);
    storage.reset(static_cast<unsigned char*>(memory));
    if (std::fread(memory, 1, bytes, stdin) != static_cast<size_t>(bytes)) std::exit(2);
  }

  unsigned char* data() const { return storage.get() + offset; }
  View view() const { return {data(), batch, row, column}; }
  MutableView mutable_view() const { return {data(), batch, row, column}; }
  float* numbers() const { return reinterpret_cast<float*>(data()); }
  void write() const { std::fwrite(storage.get(), 1, bytes, stdout); }
};

}  // namespace

int main() {
  const int64_t operation = read_integer();
  criss_cross::Problem problem{};
  problem.type = static_cast<DataType>(read_integer());
  problem.batch = read_integer();
  problem.height = read_integer();
  problem.width = read_integer();
  problem.query_channels = read_integer();
  problem.value_channels = read_integer();
  simulator::seed = read_integer();
  const auto gamma_type = static_cast<DataType>(read_integer());

  const size_t bytes = operation == 2 ? criss_cross::backward_workspace(problem)
                                      : criss_cross::forward_workspace(problem);
  const auto workspace = std::make_unique<unsigned char[]>(bytes);
  std::memset(workspace.get(), 0xff, bytes);

  // The tensors in the order of the call, those it writes last.
  const std::vector<Tensor> tensors(operation == 0 ? 5 : operation == 1 ? 7 : 9);
  const size_t written = tensors.size() - (operation == 2 ? 3 : 2);
  const Tensor* const results = tensors.data() + written;
  cudaError_t result;
  if (operation == 2) {
    result = criss_cross::backward(problem, tensors[0].view(), tensors[1].view(), tensors[2].view(), tensors[3].view(),
                                   tensors[4].view(), tensors[5].numbers(), results[0].mutable_view(),
                                   results[1].mutable_view(), results[2].mutable_view(), workspace.get(), nullptr);
  } else {
    criss_cross::Residual residual{};
    if (operation == 1) residual = {tensors[3].data(), gamma_type, tensors[4].view()};
    result = criss_cross::forward(problem, tensors[0].view(), tensors[1].view(), tensors[2].view(),
                                  operation == 1 ? &residual : nullptr, results[0].mutable_view(),
                                  results[1].numbers(), workspace.get(), nullptr);
  }
  if (result != cudaSuccess) {
    std::fprintf(stderr, "error %d: %s\n", result, simulator::error.c_str());
    return 1;
  }
  const int64_t launches = criss_cross::launches();
  std::fwrite(&launches, sizeof(launches), 1, stdout);
  for (size_t i = written; i < tensors.size(); ++i) tensors[i].write();
  return 0;
}
