// Products of one input are one kernel, with the gate behind them; row operations in a row are one;
// equal kernels are one function.
// RUN: infc opt %s --pipeline fuse-kernels | filecheck %s

// CHECK-LABEL: func.func private @k0_rows(
// CHECK-SAME: attributes {infc.kernel = "rows"}
// CHECK-NEXT: "infc.add"
// CHECK-NEXT: "infc.softcap"
// CHECK-NEXT: return
// CHECK-LABEL: func.func private @k1_matmul(
// CHECK-SAME: attributes {infc.kernel = "matmul"}
// CHECK-NEXT: [[G:%[0-9]+]] = "infc.linear"(%arg0, %arg1)
// CHECK-NEXT: [[U:%[0-9]+]] = "infc.linear"(%arg0, %arg1)
// CHECK-NEXT: [[A:%[0-9]+]] = "infc.activation"([[G]])
// CHECK-NEXT: "infc.mul"([[A]], [[U]])
// CHECK-NOT: func.func private @k2
// CHECK-LABEL: func.func @main(
// CHECK-NEXT: [[R:%[0-9]+]] = call @k0_rows(%arg0)
// CHECK-NEXT: [[M:%[0-9]+]] = call @k1_matmul([[R]], %arg1)
// CHECK-NEXT: [[S:%[0-9]+]] = call @k0_rows([[M]])
// CHECK-NEXT: return [[S]]
!x = tensor<?x64xf32, ["t", 64]>
!w = tensor<64x64xf32>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !x, %w: !w) -> !x {
      %a = "infc.add"(%x, %x) : (!x, !x) -> !x
      %b = "infc.softcap"(%a) {cap = 1.0 : f32} : (!x) -> !x
      %g = "infc.linear"(%b, %w) : (!x, !w) -> !x
      %u = "infc.linear"(%b, %w) : (!x, !w) -> !x
      %s = "infc.activation"(%g) {kind = "silu"} : (!x) -> !x
      %m = "infc.mul"(%s, %u) : (!x, !x) -> !x
      %c = "infc.add"(%m, %m) : (!x, !x) -> !x
      %d = "infc.softcap"(%c) {cap = 1.0 : f32} : (!x) -> !x
      return %d : !x
    }
  }
}
// -----
// Declined: a product of another input, and what needs whole rows. Rows of another count are
// another kernel.
// RUN: infc opt %s --pipeline fuse-kernels --remarks fuse-kernels | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK-NEXT: [[Q:%[0-9]+]] = call @k0_matmul(%arg0, %arg1)
// CHECK-NEXT: [[O:%[0-9]+]] = call @k0_matmul([[Q]], %arg1)
// CHECK-NEXT: [[N:%[0-9]+]] = call @k1_rows([[O]], %arg2)
// CHECK-NEXT: [[S:%[0-9]+]] = call @k2_rows([[N]], %arg3)
// CHECK: remark[fuse-kernels]: o: reads another input than the product before it
// CHECK-NEXT: remark[fuse-kernels]: norm: needs whole rows of the product before it
!x = tensor<?x64xf32, ["t", 64]>
!y = tensor<?x64xf32, ["r", 64]>
!w = tensor<64x64xf32>
!g = tensor<64xf32>
!r = tensor<?xi32, ["r"]>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    "infc.dim"() {sym_name = "r", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !x, %w: !w, %g: !g, %rows: !r) -> !y {
      %q = "infc.linear"(%x, %w) : (!x, !w) -> !x loc("q")
      %o = "infc.linear"(%q, %w) : (!x, !w) -> !x loc("o")
      %n = "infc.rms_norm"(%o, %g) {eps = 1.0e-6 : f32, offset = 0.0 : f32} : (!x, !g) -> !x loc("norm")
      %s = "infc.select_rows"(%n, %rows) : (!x, !r) -> !y loc("rows")
      return %s : !y
    }
  }
}
// -----
// An epilogue of no known form is split off: the product of one matrix times itself is not a gate.
// RUN: infc opt %s --pipeline fuse-kernels | filecheck %s

// CHECK-LABEL: func.func private @k0_matmul(
// CHECK-NEXT: "infc.linear"
// CHECK-NEXT: return
// CHECK-LABEL: func.func private @k1_rows(
// CHECK-NEXT: "infc.activation"
// CHECK-NEXT: "infc.mul"
!x = tensor<?x64xf32, ["t", 64]>
!w = tensor<64x64xf32>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !x, %w: !w) -> !x {
      %g = "infc.linear"(%x, %w) : (!x, !w) -> !x
      %s = "infc.activation"(%g) {kind = "silu"} : (!x) -> !x
      %m = "infc.mul"(%s, %g) : (!x, !x) -> !x
      return %m : !x
    }
  }
}
// -----
// Keys go from the norm of their heads through the rotation straight to the cache: one kernel.
// RUN: infc opt %s --pipeline fuse-kernels | filecheck %s

// CHECK-LABEL: func.func private @k0_rotary(
// CHECK-NEXT: "infc.rms_norm"{{.*}}head_dim = 16
// CHECK-NEXT: "infc.rope"
// CHECK-NEXT: "infc.kv_append"
// CHECK-NEXT: return
// CHECK-LABEL: func.func private @k1_attention(
// CHECK-NEXT: "infc.kv_attention"
// CHECK-NEXT: return
!x = tensor<?x32xf32, ["t", 32]>
!i = tensor<?xi32, ["t"]>
!g = tensor<16xf32>
!r = tensor<32x8x2xf32>
!c = !infc.kv<"f32", 2 : i64, 16 : i64, 32 : i64, 0 : i64>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 1 : i64} : () -> ()
    func.func @main(%k: !x, %p: !i, %s: !i, %g: !g, %r: !r, %c: !c) -> !x {
      %n = "infc.rms_norm"(%k, %g) {eps = 1.0e-6 : f32, offset = 0.0 : f32, head_dim = 16 : i64} : (!x, !g) -> !x
      %t = "infc.rope"(%n, %p, %r) {head_dim = 16 : i64, interleaved = false} : (!x, !i, !r) -> !x
      %u = "infc.kv_append"(%c, %t, %k, %p, %s) : (!c, !x, !x, !i, !i) -> !c
      %y = "infc.kv_attention"(%t, %u, %p, %s) {heads = 2 : i64, scale = 0.25 : f32, softcap = 0.0 : f32} : (!x, !c, !i, !i) -> !x
      return %y : !x
    }
  }
}
// -----
// Rounding to bf16 needs no whole rows: it joins what makes the rows, where nothing else reads them.
// RUN: infc opt %s --pipeline fuse-kernels | filecheck %s

// CHECK-LABEL: func.func private @k0_attention(
// CHECK-NEXT: [[A:%[0-9]+]] = "infc.kv_attention"
// CHECK-NEXT: [[B:%[0-9]+]] = "infc.quantize"([[A]])
// CHECK-NEXT: return [[B]]
// CHECK-LABEL: func.func private @k1_matmul(
// CHECK: "infc.mul"
// CHECK-NEXT: "infc.quantize"
// CHECK-LABEL: func.func private @k2_matmul(
// CHECK-NEXT: "infc.linear"
// CHECK-NEXT: return
// CHECK-LABEL: func.func private @k3_rows(
// CHECK-NEXT: "infc.quantize"
!x = tensor<?x64xf32, ["t", 64]>
!b = tensor<?x64x!infc.storage<"abf16">, ["t", 64]>
!w = tensor<64x64x!infc.storage<"q5_0">>
!i = tensor<?xi32, ["t"]>
!kv = !infc.kv<"f16", 1, 32, 64, 0>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-amx"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 64 : i64} : () -> ()
    func.func @main(%q: !x, %kv: !kv, %p: !i, %s: !i, %w: !w) -> (!x, !b) {
      %a = "infc.kv_attention"(%q, %kv, %p, %s) {heads = 2 : i64, scale = 1.0 : f32, softcap = 0.0 : f32} : (!x, !kv, !i, !i) -> !x
      %r = "infc.quantize"(%a) : (!x) -> !b
      %g = "infc.linear"(%r, %w) : (!b, !w) -> !x
      %u = "infc.linear"(%r, %w) : (!b, !w) -> !x
      %o = "infc.activation"(%g) {kind = "silu"} : (!x) -> !x
      %m = "infc.mul"(%o, %u) : (!x, !x) -> !x
      %n = "infc.quantize"(%m) : (!x) -> !b
      %d = "infc.linear"(%n, %w) : (!b, !w) -> !x
      %e = "infc.quantize"(%d) : (!x) -> !b
      return %d, %e : !x, !b
    }
  }
}
