/* Names of the CPU variants. Every <op>_cpu.c is compiled once per instruction set (meson.build: v2, v3 and v4 of
 * x86-64, or "base" elsewhere) with LY_ISA set, and LY_CPU(gemm) names that variant's function: ly_gemm_cpu_v3. */
#ifndef LAYERS_CPU_ISA_H
#define LAYERS_CPU_ISA_H

#ifndef LY_ISA
#error "compile with -DLY_ISA=v2|v3|v4|base (layers/meson.build does)"
#endif

#define LY_I_PASTE2(name, isa) ly_##name##_cpu_##isa
#define LY_I_PASTE(name, isa) LY_I_PASTE2(name, isa)
#define LY_I_STRING2(text) #text
#define LY_I_STRING(text) LY_I_STRING2(text)

/* The symbol of operator `name` in the variant being compiled. */
#define LY_CPU(name) LY_I_PASTE(name, LY_ISA)
/* "cpu-v3" */
#define LY_CPU_BACKEND "cpu-" LY_I_STRING(LY_ISA)

/* Prototypes of every operator of this variant, generated from the list. */
#include "layers/ops.h"
#define LY_OP(name) mc_status LY_CPU(name)(const ly_ctx *cx, const ly_##name *a);
#include "layers/ops.def"
#undef LY_OP

#endif
