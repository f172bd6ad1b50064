// The best token comes from candidates, the logits stay for those who want them; the weight is marked
// wherever it is used, also where it is the embedding.
// RUN: infc opt %s --pipeline split-head | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK-NEXT: [[W:%[0-9]+]] = "infc.weight"() {source = "head", split = true}
// CHECK-NEXT: [[L:%[0-9]+]] = "infc.linear"(%arg0, [[W]])
// CHECK-NEXT: [[A:%[0-9]+]]:2 = "infc.head_candidates"(%arg0, [[W]]) {count = 1 : i64}
// CHECK-NEXT: [[B:%[0-9]+]] = "infc.argmax"([[A]]#0, [[A]]#1)
// CHECK-NEXT: [[C:%[0-9]+]]:2 = "infc.head_candidates"(%arg0, [[W]]) {count = 8 : i64}
// CHECK-SAME: tensor<?x32xf32, ["r", 32]>, tensor<?x32xi32, ["r", 32]>
// CHECK-NEXT: [[T:%[0-9]+]]:2 = "infc.top_k"([[C]]#0, [[C]]#1)
// CHECK-NEXT: return [[L]], [[B]], [[T]]#0, [[T]]#1
// CHECK-LABEL: module @decode
// CHECK: "infc.weight"() {source = "head", split = true}
// CHECK: "infc.argmax"([[E:%[0-9]+]]) :
!a = tensor<?x64x!infc.storage<"a8">, ["r", 64]>
!f = tensor<?x64xf32, ["r", 64]>
!w = tensor<48x64x!infc.storage<"q8_0">>
!y = tensor<?x48xf32, ["r", 48]>
!b = tensor<?xi32, ["r"]>
!v = tensor<?x8xf32, ["r", 8]>
!i = tensor<?x8xi32, ["r", 8]>
module attributes {infc.level = "schedule", infc.options = {max_threads = 4 : i64}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "r", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !a) -> (!y, !b, !v, !i) {
      %w = "infc.weight"() {source = "head"} : () -> !w
      %y = "infc.linear"(%x, %w) : (!a, !w) -> !y
      %b = "infc.argmax"(%y) : (!y) -> !b
      %t:2 = "infc.top_k"(%y) : (!y) -> (!v, !i)
      return %y, %b, %t#0, %t#1 : !y, !b, !v, !i
    }
  }
  module @decode attributes {infc.phase = "decode"} {
    "infc.dim"() {sym_name = "r", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !f) -> (!y, !b) {
      %w = "infc.weight"() {source = "head"} : () -> !w
      %y = "infc.linear"(%x, %w) : (!f, !w) -> !y
      %b = "infc.argmax"(%y) : (!y) -> !b
      return %y, %b : !y, !b
    }
  }
}
// -----
// Float weights take their input as it is.
// RUN: infc opt %s --pipeline split-head | filecheck %s

// CHECK: [[W:%[0-9]+]] = "infc.weight"() {source = "head", split = true}
// CHECK-NEXT: [[L:%[0-9]+]] = "infc.linear"(%arg0, [[W]])
// CHECK-NEXT: [[A:%[0-9]+]]:2 = "infc.head_candidates"(%arg0, [[W]]) {count = 1 : i64}
// CHECK-NEXT: "infc.argmax"([[A]]#0, [[A]]#1)
// CHECK-LABEL: module @prefill
// CHECK: "infc.weight"() {source = "head", split = true}
// CHECK-NOT: "infc.head_candidates"
!r = tensor<?x64x!infc.storage<"abf16">, ["r", 64]>
!f = tensor<?x64xf32, ["r", 64]>
!w = tensor<48x64x!infc.storage<"bf16">>
!y = tensor<?x48xf32, ["r", 48]>
!b = tensor<?xi32, ["r"]>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    "infc.dim"() {sym_name = "r", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !f) -> (!y, !b) {
      %w = "infc.weight"() {source = "head"} : () -> !w
      %y = "infc.linear"(%x, %w) : (!f, !w) -> !y
      %b = "infc.argmax"(%y) : (!y) -> !b
      return %y, %b : !y, !b
    }
  }
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "r", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !r) -> (!y, !b) {
      %w = "infc.weight"() {source = "head"} : () -> !w
      %y = "infc.linear"(%x, %w) : (!r, !w) -> !y
      %b = "infc.argmax"(%y) : (!y) -> !b
      return %y, %b : !y, !b
    }
  }
}
// -----
// Behind a soft cap logits are compared whole, and a head whose type the backend does not split
// stays as it is.
// RUN: infc opt %s --pipeline split-head | filecheck %s

// CHECK-NOT: "infc.head_candidates"
// CHECK-NOT: split = true
// CHECK: return
!a = tensor<?x64x!infc.storage<"a8">, ["r", 64]>
!w = tensor<48x64x!infc.storage<"q8_0">>
!u = tensor<48x64x!infc.storage<"q4_0">>
!y = tensor<?x48xf32, ["r", 48]>
!b = tensor<?xi32, ["r"]>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "r", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !a) -> (!b, !b) {
      %w = "infc.weight"() {source = "capped"} : () -> !w
      %y = "infc.linear"(%x, %w) : (!a, !w) -> !y
      %c = "infc.softcap"(%y) {cap = 3.0 : f32} : (!y) -> !y
      %b = "infc.argmax"(%c) : (!y) -> !b
      %u = "infc.weight"() {source = "small"} : () -> !u
      %z = "infc.linear"(%x, %u) : (!a, !u) -> !y
      %d = "infc.argmax"(%z) : (!y) -> !b
      return %b, %d : !b, !b
    }
  }
}
