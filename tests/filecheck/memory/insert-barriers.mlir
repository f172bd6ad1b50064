// Between a write and a read of shared bytes stands a barrier; also where a buffer takes the place
// of one that is still being read. Kernels that touch nothing in common need none.
// RUN: infc opt %s --pipeline insert-barriers | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK: call @copy([[A:%[0-9]+]], [[B:%[0-9]+]])
// CHECK-NEXT: call @copy([[C:%[0-9]+]], [[D:%[0-9]+]])
// CHECK-NEXT: "infc.barrier"
// CHECK-NEXT: call @copy([[B]], [[C]])
// CHECK-NEXT: "infc.barrier"
// CHECK-NEXT: call @copy([[A]], [[E:%[0-9]+]])
// CHECK-NEXT: return
!a = !infc.buffer<tensor<64xf32>, "rows", "arena">
!frame = !infc.buffer<tensor<0xi8>, "frame", "arena">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    func.func @main() {
      %arena = "infc.space"() {size_bytes = 1280 : i64} : () -> !frame
      %a = "infc.alloc"(%arena) {offset = 0 : i64, size_bytes = 256 : i64} : (!frame) -> !a
      %b = "infc.alloc"(%arena) {offset = 256 : i64, size_bytes = 256 : i64} : (!frame) -> !a
      %c = "infc.alloc"(%arena) {offset = 512 : i64, size_bytes = 256 : i64} : (!frame) -> !a
      %d = "infc.alloc"(%arena) {offset = 768 : i64, size_bytes = 256 : i64} : (!frame) -> !a
      // Overlaps the second half of %b, which the call before reads.
      %e = "infc.alloc"(%arena) {offset = 384 : i64, size_bytes = 64 : i64} : (!frame) -> !a
      call @copy(%a, %b) : (!a, !a) -> ()
      call @copy(%c, %d) : (!a, !a) -> ()
      call @copy(%b, %c) : (!a, !a) -> ()
      call @copy(%a, %e) : (!a, !a) -> ()
      return
    }
    func.func private @copy(%x: !a, %y: !a) attributes {infc.kernel = "rows", infc.mapping = {}} {
      %v = "infc.read"(%x) : (!a) -> tensor<64xf32>
      "infc.write"(%v, %y) : (tensor<64xf32>, !a) -> ()
      return
    }
  }
}
// -----
// Memory of one thread and weights need no barrier; a layer begins with one, for it cannot know what
// ran before it, and so does what follows a layer.
// RUN: infc opt %s --pipeline insert-barriers | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK: call @own(%{{[0-9]+}}, %{{[0-9]+}})
// CHECK-NEXT: call @own(
// CHECK-NEXT: call @layer0(
// CHECK-NEXT: call @layer0(
// CHECK-NEXT: "infc.barrier"
// CHECK-NEXT: call @copy(
// CHECK-NEXT: return
// CHECK-LABEL: func.func private @layer0(
// CHECK-NEXT: "infc.barrier"
// CHECK-NEXT: call @copy(%arg0, %arg1)
// CHECK-NEXT: return
!a = !infc.buffer<tensor<64xf32>, "rows", "arena">
!t = !infc.buffer<tensor<64xf32>, "rows", "thread">
!frame = !infc.buffer<tensor<0xi8>, "frame", "arena">
!tframe = !infc.buffer<tensor<0xi8>, "frame", "thread">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    func.func @main() {
      %arena = "infc.space"() {size_bytes = 512 : i64} : () -> !frame
      %thread = "infc.space"() {size_bytes = 512 : i64} : () -> !tframe
      %a = "infc.alloc"(%arena) {offset = 0 : i64, size_bytes = 256 : i64} : (!frame) -> !a
      %b = "infc.alloc"(%arena) {offset = 256 : i64, size_bytes = 256 : i64} : (!frame) -> !a
      %s = "infc.alloc"(%thread) {offset = 0 : i64, size_bytes = 256 : i64} : (!tframe) -> !t
      %t = "infc.alloc"(%thread) {offset = 256 : i64, size_bytes = 256 : i64} : (!tframe) -> !t
      call @own(%s, %t) : (!t, !t) -> ()
      call @own(%t, %s) : (!t, !t) -> ()
      call @layer0(%a, %b) : (!a, !a) -> ()
      call @layer0(%b, %a) : (!a, !a) -> ()
      call @copy(%a, %b) : (!a, !a) -> ()
      return
    }
    func.func private @layer0(%x: !a, %y: !a) {
      call @copy(%x, %y) : (!a, !a) -> ()
      return
    }
    func.func private @own(%x: !t, %y: !t) attributes {infc.kernel = "rows", infc.mapping = {}} {
      %v = "infc.read"(%x) : (!t) -> tensor<64xf32>
      "infc.write"(%v, %y) : (tensor<64xf32>, !t) -> ()
      return
    }
    func.func private @copy(%x: !a, %y: !a) attributes {infc.kernel = "rows", infc.mapping = {}} {
      %v = "infc.read"(%x) : (!a) -> tensor<64xf32>
      "infc.write"(%v, %y) : (tensor<64xf32>, !a) -> ()
      return
    }
  }
}
// -----
// A cache is shared memory: what attends waits for what appends.
// RUN: infc opt %s --pipeline insert-barriers | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK: call @append(
// CHECK-NEXT: "infc.barrier"
// CHECK-NEXT: call @attend(
// CHECK-NEXT: return
!x = !infc.buffer<tensor<?x32xf32, ["t", 32]>, "rows", "call">
!i = !infc.buffer<tensor<?xi32, ["t"]>, "rows", "call">
!tx = tensor<?x32xf32, ["t", 32]>
!ti = tensor<?xi32, ["t"]>
!c = !infc.kv<"f32", 2 : i64, 16 : i64, 32 : i64, 0 : i64>
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 1 : i64} : () -> ()
    func.func @main(%x: !x, %p: !i, %y: !x) {
      %c = "infc.kv_cache"() {index = 0 : i64} : () -> !c
      call @append(%x, %c, %p) : (!x, !c, !i) -> ()
      call @attend(%x, %c, %p, %y) : (!x, !c, !i, !x) -> ()
      return
    }
    func.func private @append(%x: !x, %c: !c, %p: !i) attributes {infc.kernel = "rotary", infc.mapping = {}} {
      %k = "infc.read"(%x) : (!x) -> !tx
      %i = "infc.read"(%p) : (!i) -> !ti
      %u = "infc.kv_append"(%c, %k, %k, %i, %i) : (!c, !tx, !tx, !ti, !ti) -> !c
      return
    }
    func.func private @attend(%x: !x, %c: !c, %p: !i, %y: !x) attributes {infc.kernel = "attention", infc.mapping = {}} {
      %q = "infc.read"(%x) : (!x) -> !tx
      %i = "infc.read"(%p) : (!i) -> !ti
      %o = "infc.kv_attention"(%q, %c, %i, %i) {heads = 2 : i64, scale = 0.25 : f32, softcap = 0.0 : f32} : (!tx, !c, !ti, !ti) -> !tx
      "infc.write"(%o, %y) : (!tx, !x) -> ()
      return
    }
  }
}
