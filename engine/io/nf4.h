// NF4 in files is NF4 on the device: one encoder and decoder for both.
#pragma once

#include "kernels/nf4.h"
