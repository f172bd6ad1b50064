// Products with quantised weights read integers; two products of one input share its codes.
// RUN: infc opt %s --pipeline quantize-activations | filecheck %s

// CHECK: infc.level = "schedule"
// CHECK-LABEL: func.func @main(
// CHECK-NEXT: [[A:%[0-9]+]] = "infc.quantize"(%arg0) : (tensor<?x64xf32, ["t", 64]>) -> tensor<?x64x!infc.storage<"a8">, ["t", 64]>
// CHECK-NEXT: [[Q:%[0-9]+]] = "infc.linear"([[A]], %arg1)
// CHECK-NEXT: [[K:%[0-9]+]] = "infc.linear"([[A]], %arg1)
// CHECK-NEXT: [[S:%[0-9]+]] = "infc.add"([[Q]], [[K]])
// CHECK-NEXT: [[B:%[0-9]+]] = "infc.quantize"([[S]])
// CHECK-NEXT: "infc.linear"([[B]], %arg1)
!x = tensor<?x64xf32, ["t", 64]>
!w = tensor<64x64x!infc.storage<"q5_0">>
module attributes {infc.level = "phase", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !x, %w: !w) -> !x {
      %q = "infc.linear"(%x, %w) : (!x, !w) -> !x
      %k = "infc.linear"(%x, %w) : (!x, !w) -> !x
      %s = "infc.add"(%q, %k) : (!x, !x) -> !x
      %o = "infc.linear"(%s, %w) : (!x, !w) -> !x
      return %o : !x
    }
  }
}
// -----
// Declined: float weights, and rows that groups of 32 do not fill.
// RUN: infc opt %s --pipeline quantize-activations --remarks quantize-activations | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK-NEXT: "infc.linear"(%arg0, %arg1)
// CHECK-NEXT: "infc.linear"(%arg0, %arg2)
// CHECK-NOT: "infc.quantize"
// CHECK: remark[quantize-activations]: layers.0.q: bf16 weights of 48 columns take f32 inputs
// CHECK-NEXT: remark[quantize-activations]: layers.0.k: q6_k weights of 48 columns take f32 inputs
!x = tensor<?x48xf32, ["t", 48]>
!f = tensor<48x48xbf16>
!w = tensor<48x48x!infc.storage<"q6_k">>
module attributes {infc.level = "phase", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !x, %f: !f, %w: !w) -> (!x, !x) {
      %q = "infc.linear"(%x, %f) : (!x, !f) -> !x loc("layers.0.q")
      %k = "infc.linear"(%x, %w) : (!x, !w) -> !x loc("layers.0.k")
      return %q, %k : !x, !x
    }
  }
}

// -----
// Where tiles multiply bf16 many rows are rounded; a few stay integers, read while weights stream.
// RUN: infc opt %s --pipeline quantize-activations | filecheck %s

// CHECK: module @prefill
// CHECK: "infc.quantize"(%arg0) : (tensor<?x64xf32, ["t", 64]>) -> tensor<?x64x!infc.storage<"abf16">, ["t", 64]>
// CHECK: module @decode
// CHECK: "infc.quantize"(%arg0) : (tensor<?x64xf32, ["t", 64]>) -> tensor<?x64x!infc.storage<"a8">, ["t", 64]>
!x = tensor<?x64xf32, ["t", 64]>
!w = tensor<64x64x!infc.storage<"q5_0">>
module attributes {infc.level = "phase", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-amx"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 64 : i64} : () -> ()
    func.func @main(%x: !x, %w: !w) -> !x {
      %q = "infc.linear"(%x, %w) : (!x, !w) -> !x
      return %q : !x
    }
  }
  module @decode attributes {infc.phase = "decode"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !x, %w: !w) -> !x {
      %q = "infc.linear"(%x, %w) : (!x, !w) -> !x
      return %q : !x
    }
  }
}
