// The operators' CUDA implementation registers itself in binding.cu; this makes the library a Python module.
#include <torch/csrc/stable/library.h>

#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
