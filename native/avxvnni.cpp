// AVX2 with VNNI: Intel since Alder Lake, AMD since Zen 5.
#define SHVIT_VNNI
#include "avx2.cpp"
