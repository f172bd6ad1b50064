// Launches are counted through layers; buffers are listed with the place in the model they serve.
// RUN: infc opt %s --pipeline record-plan | filecheck %s

// CHECK: infc.report = {decode = {kernels = [{barriers = 1 : i64, bytes = {dram = 64 : i64}, kernel = "k0_rows", kind = "rows", launches = 3 : i64, location = "norm", mapping = {partition = "rows"}, operations = {f32 = 256 : i64}, outputs = ["argmax", "logits", "top_k"], rows = 1 : i64}]
// CHECK-SAME: plans = {
// CHECK-SAME: layer0 = {arena = {height_bytes = 0 : i64, lower_bound_bytes = 0 : i64}, buffers = []
// CHECK-SAME: main = {arena = {height_bytes = 512 : i64, lower_bound_bytes = 512 : i64}
// CHECK-SAME: buffers = [{buffer = "x", first = 1 : i64, last = 4 : i64, offset_bytes = 0 : i64, size_bytes = 256 : i64, space = "arena", type = "tensor<64xf32>"},
!a = !infc.buffer<tensor<64xf32>, "rows", "arena">
!frame = !infc.buffer<tensor<0xi8>, "frame", "arena">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    func.func @main() attributes {infc.plan = {arena = {height_bytes = 512 : i64, lower_bound_bytes = 512 : i64}}} {
      %arena = "infc.space"() {size_bytes = 512 : i64} : () -> !frame
      %x = "infc.alloc"(%arena) {offset = 0 : i64, size_bytes = 256 : i64, first = 1 : i64, last = 4 : i64} : (!frame) -> !a loc("x")
      %y = "infc.alloc"(%arena) {offset = 256 : i64, size_bytes = 256 : i64, first = 2 : i64, last = 4 : i64} : (!frame) -> !a loc("y")
      call @layer0(%x, %y) : (!a, !a) -> ()
      call @layer0(%y, %x) : (!a, !a) -> ()
      call @k0_rows(%x, %y) : (!a, !a) -> ()
      return
    }
    func.func private @layer0(%x: !a, %y: !a) attributes {infc.plan = {arena = {height_bytes = 0 : i64, lower_bound_bytes = 0 : i64}}} {
      call @k0_rows(%x, %y) : (!a, !a) -> ()
      return
    }
    func.func private @k0_rows(%x: !a, %y: !a) attributes {infc.kernel = "rows",
        infc.mapping = {partition = "rows"},
        infc.work = {rows = 1 : i64, bytes = {dram = 64 : i64}, operations = {f32 = 256 : i64}, barriers = 1 : i64}} {
      return
    } loc("norm")
  }
}
