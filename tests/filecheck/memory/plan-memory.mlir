// Buffers that are not live together share bytes; the frames of a callee are as large as its plan.
// In main the first buffer and the layer's result and frame live together, the last takes the place
// of the frame.
// RUN: infc opt %s --pipeline plan-memory | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK-SAME: infc.plan = {arena = {height_bytes = 6144 : i64, lower_bound_bytes = 6144 : i64}, thread = {height_bytes = 192 : i64, lower_bound_bytes = 192 : i64}}
// CHECK: "infc.space"() {size_bytes = 6144 : i64}
// CHECK: "infc.space"() {size_bytes = 192 : i64}
// CHECK: "infc.alloc"(%0) {first = 3 : i64, last = 7 : i64, offset = {{[0-9]+}} : i64, size_bytes = 2048 : i64}
// CHECK: "infc.alloc"(%0) {first = 7 : i64, last = 8 : i64, offset = {{[0-9]+}} : i64, size_bytes = 2048 : i64}
// CHECK: "infc.alloc"(%0) {first = 7 : i64, last = 7 : i64, offset = {{[0-9]+}} : i64, size_bytes = 2048 : i64}
// CHECK: "infc.alloc"(%1) {first = 7 : i64, last = 7 : i64, offset = 0 : i64, size_bytes = 192 : i64}
// CHECK-LABEL: func.func private @layer0(
// CHECK-SAME: infc.plan = {arena = {height_bytes = 2048 : i64, lower_bound_bytes = 2048 : i64}, thread = {height_bytes = 192 : i64, lower_bound_bytes = 192 : i64}}
// CHECK: "infc.alloc"(%arg2) {first = {{[0-9]+}} : i64, last = {{[0-9]+}} : i64, offset = 0 : i64, size_bytes = 2048 : i64}
!a = !infc.buffer<tensor<?x64xf32, ["t", 64]>, "rows", "arena">
!call = !infc.buffer<tensor<?x64xf32, ["t", 64]>, "rows", "call">
!frame = !infc.buffer<tensor<0xi8>, "frame", "arena">
!own = !infc.buffer<tensor<0xi8>, "frame", "thread">
!scratch = !infc.buffer<tensor<192xi8>, "frame", "thread">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !call, %y: !call) {
      %arena = "infc.space"() {size_bytes = 0 : i64} : () -> !frame
      %thread = "infc.space"() {size_bytes = 0 : i64} : () -> !own
      %a = "infc.alloc"(%arena) {offset = -1 : i64, size_bytes = 2048 : i64} : (!frame) -> !a
      call @k0_rows(%x, %a) : (!call, !a) -> ()
      %b = "infc.alloc"(%arena) {offset = -1 : i64, size_bytes = 2048 : i64} : (!frame) -> !a
      %f = "infc.alloc"(%arena) {offset = -1 : i64, size_bytes = 0 : i64} : (!frame) -> !frame
      %g = "infc.alloc"(%thread) {offset = -1 : i64, size_bytes = 0 : i64} : (!own) -> !own
      call @layer0(%a, %b, %f, %g) : (!a, !a, !frame, !own) -> ()
      call @k2_rows(%b, %y) : (!a, !call) -> ()
      return
    }
    func.func private @layer0(%x: !a, %y: !a, %frame: !frame, %own: !own) {
      %a = "infc.alloc"(%frame) {offset = -1 : i64, size_bytes = 2048 : i64} : (!frame) -> !a
      %s = "infc.alloc"(%own) {offset = -1 : i64, size_bytes = 192 : i64} : (!own) -> !scratch
      call @k1_rows(%x, %a, %s) : (!a, !a, !scratch) -> ()
      call @k3_rows(%a, %y) : (!a, !a) -> ()
      return
    }
    func.func private @k0_rows(%x: !call, %y: !a) attributes {infc.kernel = "rows", infc.mapping = {}} {
      return
    }
    func.func private @k1_rows(%x: !a, %y: !a, %s: !scratch) attributes {infc.kernel = "rows", infc.mapping = {}} {
      return
    }
    func.func private @k2_rows(%x: !a, %y: !call) attributes {infc.kernel = "rows", infc.mapping = {}} {
      return
    }
    func.func private @k3_rows(%x: !a, %y: !a) attributes {infc.kernel = "rows", infc.mapping = {}} {
      return
    }
  }
}
// -----
// A chain of three needs room for two.
// RUN: infc opt %s --pipeline plan-memory | filecheck %s

// CHECK: infc.plan = {arena = {height_bytes = 512 : i64, lower_bound_bytes = 512 : i64}
// CHECK: "infc.alloc"(%0) {{.*}}offset = [[A:[0-9]+]] : i64, size_bytes = 256 : i64}
// CHECK: "infc.alloc"(%0) {{.*}}offset = [[B:[0-9]+]] : i64, size_bytes = 256 : i64}
// CHECK: "infc.alloc"(%0) {{.*}}offset = [[A]] : i64, size_bytes = 256 : i64}
!a = !infc.buffer<tensor<?x64xf32, ["t", 64]>, "rows", "arena">
!frame = !infc.buffer<tensor<0xi8>, "frame", "arena">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 1 : i64} : () -> ()
    func.func @main() {
      %arena = "infc.space"() {size_bytes = 0 : i64} : () -> !frame
      %a = "infc.alloc"(%arena) {offset = -1 : i64, size_bytes = 256 : i64} : (!frame) -> !a
      %b = "infc.alloc"(%arena) {offset = -1 : i64, size_bytes = 256 : i64} : (!frame) -> !a
      call @k0_rows(%a, %b) : (!a, !a) -> ()
      %c = "infc.alloc"(%arena) {offset = -1 : i64, size_bytes = 256 : i64} : (!frame) -> !a
      call @k0_rows(%b, %c) : (!a, !a) -> ()
      return
    }
    func.func private @k0_rows(%x: !a, %y: !a) attributes {infc.kernel = "rows", infc.mapping = {}} {
      return
    }
  }
}
// -----
// RUN: not infc opt %s --pipeline plan-memory | filecheck %s

// CHECK: error[INF2002]: the IR breaks 2 rules
// CHECK-NEXT: - infc.alloc: expected an offset that is a multiple of 64, got 32 (loc("a"))
// CHECK-NEXT: - infc.alloc: expected space arena, got thread (loc("b"))
!a = !infc.buffer<tensor<64xf32>, "rows", "arena">
!b = !infc.buffer<tensor<64xf32>, "rows", "thread">
!frame = !infc.buffer<tensor<0xi8>, "frame", "arena">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    func.func @main() {
      %arena = "infc.space"() {size_bytes = 0 : i64} : () -> !frame
      %a = "infc.alloc"(%arena) {offset = 32 : i64, size_bytes = 256 : i64} : (!frame) -> !a loc("a")
      %b = "infc.alloc"(%arena) {offset = -1 : i64, size_bytes = 256 : i64} : (!frame) -> !b loc("b")
      return
    }
  }
}
