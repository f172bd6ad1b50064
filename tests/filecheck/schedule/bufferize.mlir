// Values between kernels get buffers, weights become packed ones, declared once; functions write
// into their last arguments. What every thread computes for itself is in the thread's own space.
// RUN: infc opt %s --pipeline bufferize | filecheck %s

// CHECK: infc.level = "memory"
// CHECK: "infc.packed"() {layout = "rows", offset = -1 : i64, size_bytes = 256 : i64, source = "gain", sym_name = "w0", type = tensor<64xf32>}
// CHECK-NOT: sym_name = "w1"
// CHECK-LABEL: func.func @main(%arg0: !infc.buffer<tensor<?x64xf32, ["t", 64]>, "rows", "call">
// CHECK-SAME: %arg1: !infc.buffer<tensor<?x64xf32, ["t", 64]>, "rows", "call">
// CHECK-NEXT: [[ARENA:%[0-9]+]] = "infc.space"() {size_bytes = 0 : i64} : () -> !infc.buffer<tensor<0xi8>, "frame", "arena">
// CHECK-NEXT: [[THREAD:%[0-9]+]] = "infc.space"() {{.*}}"thread">
// CHECK-NEXT: [[G:%[0-9]+]] = "infc.packed_ref"() {packed = "w0"}
// CHECK-NEXT: [[A:%[0-9]+]] = "infc.alloc"([[THREAD]]) {offset = -1 : i64, size_bytes = 2048 : i64}
// CHECK-NEXT: call @k0_rows(%arg0, [[G]], [[A]])
// CHECK-NEXT: [[B:%[0-9]+]] = "infc.alloc"([[ARENA]]) {offset = -1 : i64, size_bytes = 2048 : i64}
// CHECK-NEXT: call @k1_rows([[A]], [[B]])
// CHECK-NEXT: [[H:%[0-9]+]] = "infc.packed_ref"() {packed = "w0"}
// CHECK-NEXT: call @k2_rows([[B]], [[H]], %arg1)
// CHECK-NEXT: return loc
// CHECK-LABEL: func.func private @k0_rows(
// CHECK-SAME: infc.kernel = "rows"
// CHECK-NEXT: [[X:%[0-9]+]] = "infc.read"(%arg0)
// CHECK-NEXT: [[W:%[0-9]+]] = "infc.read"(%arg1)
// CHECK-NEXT: [[Y:%[0-9]+]] = "infc.rms_norm"([[X]], [[W]])
// CHECK-NEXT: "infc.write"([[Y]], %arg2)
// CHECK-NEXT: return loc
!x = tensor<?x64xf32, ["t", 64]>
!g = tensor<64xf32>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func private @k0_rows(%x: !x, %g: !g) -> !x attributes {infc.kernel = "rows", infc.mapping = {partition = "replicate"}} {
      %y = "infc.rms_norm"(%x, %g) {eps = 1.0e-6 : f32, offset = 0.0 : f32} : (!x, !g) -> !x
      return %y : !x
    }
    func.func private @k1_rows(%x: !x) -> !x attributes {infc.kernel = "rows", infc.mapping = {partition = "rows"}} {
      %y = "infc.add"(%x, %x) : (!x, !x) -> !x
      return %y : !x
    }
    func.func private @k2_rows(%x: !x, %g: !g) -> !x attributes {infc.kernel = "rows", infc.mapping = {partition = "rows"}} {
      %y = "infc.rms_norm"(%x, %g) {eps = 1.0e-6 : f32, offset = 0.0 : f32} : (!x, !g) -> !x
      return %y : !x
    }
    func.func @main(%x: !x) -> !x {
      %g = "infc.weight"() {source = "gain"} : () -> !g
      %a = call @k0_rows(%x, %g) : (!x, !g) -> !x
      %b = call @k1_rows(%a) : (!x) -> !x
      %h = "infc.weight"() {source = "gain"} : () -> !g
      %c = call @k2_rows(%b, %h) : (!x, !g) -> !x
      return %c : !x
    }
  }
}
// -----
// A layer is given frames for its own buffers, a kernel its scratch; a cache is handed on, not
// copied.
// RUN: infc opt %s --pipeline bufferize | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK: [[C:%[0-9]+]] = "infc.kv_cache"()
// CHECK: [[F0:%[0-9]+]] = "infc.alloc"({{%[0-9]+}}) {offset = -1 : i64, size_bytes = 0 : i64} {{.*}} -> !infc.buffer<tensor<0xi8>, "frame", "arena">
// CHECK-NEXT: [[F1:%[0-9]+]] = "infc.alloc"({{.*}} -> !infc.buffer<tensor<0xi8>, "frame", "thread">
// CHECK-NEXT: call @layer0(%arg0, [[C]], %arg1, %arg2, [[F0]], [[F1]])
// CHECK-LABEL: func.func private @layer0(
// CHECK: call @k0_rotary(%arg0, %arg1, %arg2)
// CHECK: [[S:%[0-9]+]] = "infc.alloc"(%arg5) {offset = -1 : i64, size_bytes = 192 : i64} {{.*}} -> !infc.buffer<tensor<192xi8>, "frame", "thread">
// CHECK-NEXT: call @k1_attention(%arg0, %arg1, %arg2, %arg3, [[S]])
!x = tensor<?x32xf32, ["t", 32]>
!i = tensor<?xi32, ["t"]>
!c = !infc.kv<"f32", 2 : i64, 16 : i64, 32 : i64, 0 : i64>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 1 : i64} : () -> ()
    func.func private @k0_rotary(%k: !x, %c: !c, %p: !i) -> !c attributes {infc.kernel = "rotary", infc.mapping = {}} {
      %u = "infc.kv_append"(%c, %k, %k, %p, %p) : (!c, !x, !x, !i, !i) -> !c
      return %u : !c
    }
    func.func private @k1_attention(%q: !x, %c: !c, %p: !i) -> !x attributes {infc.kernel = "attention", infc.mapping = {scratch_bytes = 192 : i64}} {
      %y = "infc.kv_attention"(%q, %c, %p, %p) {heads = 2 : i64, scale = 0.25 : f32, softcap = 0.0 : f32} : (!x, !c, !i, !i) -> !x
      return %y : !x
    }
    func.func private @layer0(%x: !x, %c: !c, %p: !i) -> !x {
      %u = call @k0_rotary(%x, %c, %p) : (!x, !c, !i) -> !c
      %y = call @k1_attention(%x, %u, %p) : (!x, !c, !i) -> !x
      return %y : !x
    }
    func.func @main(%x: !x, %p: !i) -> !x {
      %c = "infc.kv_cache"() {index = 0 : i64} : () -> !c
      %y = call @layer0(%x, %c, %p) : (!x, !c, !i) -> !x
      return %y : !x
    }
  }
}
// -----
// One kernel on buffers in different spaces becomes one function for each choice of them.
// RUN: infc opt %s --pipeline bufferize | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK: [[A:%[0-9]+]] = "infc.alloc"({{.*}} "thread">
// CHECK-NEXT: call @k0_rows(%arg0, [[A]])
// CHECK-NEXT: [[B:%[0-9]+]] = "infc.alloc"({{.*}} "arena">
// CHECK-NEXT: call @k1_rows([[A]], [[B]])
// CHECK-NEXT: [[C:%[0-9]+]] = "infc.alloc"({{.*}} "arena">
// CHECK-NEXT: call @k1_rows_2([[B]], [[C]])
// CHECK-NEXT: call @k2_rows([[C]], %arg1)
// CHECK: func.func private @k1_rows(%arg0: !infc.buffer<tensor<?x64xf32, ["t", 64]>, "rows", "thread">
// CHECK: func.func private @k1_rows_2(%arg0: !infc.buffer<tensor<?x64xf32, ["t", 64]>, "rows", "arena">
!x = tensor<?x64xf32, ["t", 64]>
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func private @k0_rows(%x: !x) -> !x attributes {infc.kernel = "rows", infc.mapping = {partition = "replicate"}} {
      %y = "infc.add"(%x, %x) : (!x, !x) -> !x
      return %y : !x
    }
    func.func private @k1_rows(%x: !x) -> !x attributes {infc.kernel = "rows", infc.mapping = {partition = "rows"}} {
      %y = "infc.softcap"(%x) {cap = 1.0 : f32} : (!x) -> !x
      return %y : !x
    }
    func.func private @k2_rows(%x: !x) -> !x attributes {infc.kernel = "rows", infc.mapping = {partition = "rows"}} {
      %y = "infc.softcap"(%x) {cap = 2.0 : f32} : (!x) -> !x
      return %y : !x
    }
    func.func @main(%x: !x) -> !x {
      %a = call @k0_rows(%x) : (!x) -> !x
      %b = call @k1_rows(%a) : (!x) -> !x
      %c = call @k1_rows(%b) : (!x) -> !x
      %d = call @k2_rows(%c) : (!x) -> !x
      return %d : !x
    }
  }
}
