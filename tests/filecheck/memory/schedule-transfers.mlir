// The second product's weight is on its way while the first one runs; the third one's, in the layer,
// has to wait for the first one's room, and begins before the layer does.
// RUN: infc opt %s --pipeline schedule-transfers | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK-SAME: infc.plan = {sram = {height_bytes = 4096 : i64, lower_bound_bytes = 3584 : i64}}
// CHECK: [[SRAM:%[0-9]+]] = "infc.space"() {size_bytes = 4096 : i64}
// CHECK: [[A:%[0-9]+]] = "infc.packed_ref"() {packed = "w0"}
// CHECK: [[B:%[0-9]+]] = "infc.packed_ref"() {packed = "w1"}
// CHECK: [[C:%[0-9]+]] = "infc.packed_ref"() {packed = "w2"}
// CHECK: [[X:%[0-9]+]] = "infc.alloc"([[SRAM]]) {first = 12 : i64, last = 17 : i64, offset = 3840 : i64, size_bytes = 256 : i64}
// CHECK: [[NEARA:%[0-9]+]] = "infc.alloc"([[SRAM]]) {first = 9 : i64, last = 12 : i64, offset = 0 : i64, size_bytes = 1536 : i64}
// CHECK: [[NEARB:%[0-9]+]] = "infc.alloc"([[SRAM]]) {{.*}}offset = 1536 : i64
// CHECK-NEXT: [[TA:%[0-9]+]] = "infc.prefetch"([[A]], [[NEARA]]) {queue = {{[01]}} : i64}
// CHECK-NEXT: [[TB:%[0-9]+]] = "infc.prefetch"([[B]], [[NEARB]])
// CHECK-NEXT: "infc.wait"([[TA]])
// CHECK-NEXT: call @k0_matmul(%arg0, [[NEARA]], [[X]])
// CHECK: [[NEARC:%[0-9]+]] = "infc.alloc"([[SRAM]]) {{.*}}offset = 0 : i64, size_bytes = 1536 : i64
// CHECK-NEXT: [[TC:%[0-9]+]] = "infc.prefetch"([[C]], [[NEARC]])
// CHECK-NEXT: "infc.wait"([[TB]])
// CHECK-NEXT: call @k1_matmul([[X]], [[NEARB]], [[Y:%[0-9]+]]) {infc.layer = 0 : i64}
// CHECK-NEXT: "infc.wait"([[TC]])
// CHECK-NEXT: call @k2_matmul([[Y]], [[NEARC]], %arg1) {infc.layer = 0 : i64}
// CHECK-NEXT: return
// CHECK-NOT: @layer0
// CHECK: func.func private @k0_matmul(%arg0: !infc.buffer<tensor<64xf32>, "rows", "call">{{.*}}, %arg1: !infc.buffer<tensor<6x64xf32>, "rows", "sram">
!call = !infc.buffer<tensor<64xf32>, "rows", "call">
!a = !infc.buffer<tensor<64xf32>, "rows", "arena">
!w = !infc.buffer<tensor<6x64xf32>, "rows", "weights">
!frame = !infc.buffer<tensor<0xi8>, "frame", "arena">
!own = !infc.buffer<tensor<0xi8>, "frame", "thread">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "test:scratchpad"} : () -> ()
  "infc.packed"() {sym_name = "w0", offset = -1 : i64, size_bytes = 1536 : i64, layout = "rows", type = tensor<6x64xf32>, source = "a"} : () -> ()
  "infc.packed"() {sym_name = "w1", offset = -1 : i64, size_bytes = 1536 : i64, layout = "rows", type = tensor<6x64xf32>, source = "b"} : () -> ()
  "infc.packed"() {sym_name = "w2", offset = -1 : i64, size_bytes = 1536 : i64, layout = "rows", type = tensor<6x64xf32>, source = "c"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    func.func @main(%x: !call, %y: !call) {
      %arena = "infc.space"() {size_bytes = 0 : i64} : () -> !frame
      %thread = "infc.space"() {size_bytes = 0 : i64} : () -> !own
      %w0 = "infc.packed_ref"() {packed = "w0"} : () -> !w loc("a")
      %a = "infc.alloc"(%arena) {offset = -1 : i64, size_bytes = 256 : i64} : (!frame) -> !a loc("first")
      call @k0_matmul(%x, %w0, %a) : (!call, !w, !a) -> ()
      %w1 = "infc.packed_ref"() {packed = "w1"} : () -> !w loc("b")
      %w2 = "infc.packed_ref"() {packed = "w2"} : () -> !w loc("c")
      %f = "infc.alloc"(%arena) {offset = -1 : i64, size_bytes = 0 : i64} : (!frame) -> !frame
      %g = "infc.alloc"(%thread) {offset = -1 : i64, size_bytes = 0 : i64} : (!own) -> !own
      call @layer0(%a, %w1, %w2, %y, %f, %g) {infc.layer = 0 : i64} : (!a, !w, !w, !call, !frame, !own) -> ()
      return
    }
    func.func private @layer0(%x: !a, %w1: !w, %w2: !w, %y: !call, %frame: !frame, %own: !own) {
      %b = "infc.alloc"(%frame) {offset = -1 : i64, size_bytes = 256 : i64} : (!frame) -> !a loc("second")
      call @k1_matmul(%x, %w1, %b) : (!a, !w, !a) -> ()
      call @k2_matmul(%b, %w2, %y) : (!a, !w, !call) -> ()
      return
    }
    func.func private @k0_matmul(%x: !call, %w: !w, %y: !a) attributes {infc.kernel = "matmul", infc.mapping = {}, infc.work = {barriers = 0 : i64, bytes = {}, operations = {f32 = 1000 : i64}, rows = 1 : i64}} {
      %v = "infc.read"(%x) : (!call) -> tensor<64xf32>
      "infc.write"(%v, %y) : (tensor<64xf32>, !a) -> ()
      return
    }
    func.func private @k1_matmul(%x: !a, %w: !w, %y: !a) attributes {infc.kernel = "matmul", infc.mapping = {}, infc.work = {barriers = 0 : i64, bytes = {}, operations = {f32 = 1000 : i64}, rows = 1 : i64}} {
      %v = "infc.read"(%x) : (!a) -> tensor<64xf32>
      "infc.write"(%v, %y) : (tensor<64xf32>, !a) -> ()
      return
    }
    func.func private @k2_matmul(%x: !a, %w: !w, %y: !call) attributes {infc.kernel = "matmul", infc.mapping = {}, infc.work = {barriers = 0 : i64, bytes = {}, operations = {f32 = 1000 : i64}, rows = 1 : i64}} {
      %v = "infc.read"(%x) : (!a) -> tensor<64xf32>
      "infc.write"(%v, %y) : (tensor<64xf32>, !call) -> ()
      return
    }
  }
}
// -----
// Nothing else happens meanwhile: a move.
// RUN: infc opt %s --pipeline schedule-transfers | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK: [[NEAR:%[0-9]+]] = "infc.alloc"
// CHECK-NEXT: "infc.move"(%{{[0-9]+}}, [[NEAR]])
// CHECK-NEXT: call @k0_rows([[NEAR]], %arg0)
!call = !infc.buffer<tensor<64xf32>, "rows", "call">
!w = !infc.buffer<tensor<64xf32>, "rows", "weights">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "test:scratchpad"} : () -> ()
  "infc.packed"() {sym_name = "w0", offset = -1 : i64, size_bytes = 256 : i64, layout = "rows", type = tensor<64xf32>, source = "a"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    func.func @main(%y: !call) {
      %w = "infc.packed_ref"() {packed = "w0"} : () -> !w loc("a")
      call @k0_rows(%w, %y) : (!w, !call) -> ()
      return
    }
    func.func private @k0_rows(%w: !w, %y: !call) attributes {infc.kernel = "rows", infc.mapping = {}, infc.work = {barriers = 0 : i64, bytes = {}, operations = {f32 = 64 : i64}, rows = 1 : i64}} {
      %v = "infc.read"(%w) : (!w) -> tensor<64xf32>
      "infc.write"(%v, %y) : (tensor<64xf32>, !call) -> ()
      return
    }
  }
}
// -----
// A machine whose caches look after themselves.
// RUN: infc opt %s --pipeline schedule-transfers | filecheck %s

// CHECK-LABEL: func.func @main(
// CHECK-NOT: infc.plan
// CHECK: [[W:%[0-9]+]] = "infc.packed_ref"
// CHECK-NEXT: call @k0_rows([[W]], %arg0)
!call = !infc.buffer<tensor<64xf32>, "rows", "call">
!w = !infc.buffer<tensor<64xf32>, "rows", "weights">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  "infc.packed"() {sym_name = "w0", offset = -1 : i64, size_bytes = 256 : i64, layout = "rows", type = tensor<64xf32>, source = "a"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    func.func @main(%y: !call) {
      %w = "infc.packed_ref"() {packed = "w0"} : () -> !w loc("a")
      call @k0_rows(%w, %y) : (!w, !call) -> ()
      return
    }
    func.func private @k0_rows(%w: !w, %y: !call) attributes {infc.kernel = "rows", infc.mapping = {}, infc.work = {barriers = 0 : i64, bytes = {}, operations = {f32 = 64 : i64}, rows = 1 : i64}} {
      %v = "infc.read"(%w) : (!w) -> tensor<64xf32>
      "infc.write"(%v, %y) : (tensor<64xf32>, !call) -> ()
      return
    }
  }
}
// -----
// RUN: not infc opt %s --pipeline schedule-transfers | filecheck %s

// CHECK: error[INF2101]: step 'k0_rows' needs 8 KiB on chip at once, the scratchpad has 4 KiB
// CHECK-NEXT: its largest block is '@w0 a' of 8 KiB
!call = !infc.buffer<tensor<64xf32>, "rows", "call">
!w = !infc.buffer<tensor<64xf32>, "rows", "weights">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "test:scratchpad"} : () -> ()
  "infc.packed"() {sym_name = "w0", offset = -1 : i64, size_bytes = 8192 : i64, layout = "rows", type = tensor<64xf32>, source = "a"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    func.func @main(%y: !call) {
      %w = "infc.packed_ref"() {packed = "w0"} : () -> !w loc("a")
      call @k0_rows(%w, %y) : (!w, !call) -> ()
      return
    }
    func.func private @k0_rows(%w: !w, %y: !call) attributes {infc.kernel = "rows", infc.mapping = {}, infc.work = {barriers = 0 : i64, bytes = {}, operations = {f32 = 64 : i64}, rows = 1 : i64}} {
      %v = "infc.read"(%w) : (!w) -> tensor<64xf32>
      "infc.write"(%v, %y) : (tensor<64xf32>, !call) -> ()
      return
    }
  }
}
// -----
// RUN: not infc opt %s --pipeline schedule-transfers | filecheck %s

// CHECK: error[INF2002]: the IR breaks 4 rules
// CHECK-NEXT: - infc.prefetch: expected one infc.wait for it in its block, got 0 uses of its token (loc("nobody waits"))
// CHECK-NEXT: - infc.prefetch: its target is used by infc.move before its infc.wait (loc("too early"))
// CHECK-NEXT: - infc.move: expected layout of the target rows, got other (loc("layouts"))
// CHECK-NEXT: - infc.prefetch: expected a queue of at least 0, got -1 (loc("queue"))
!a = !infc.buffer<tensor<64xf32>, "rows", "arena">
!s = !infc.buffer<tensor<64xf32>, "rows", "sram">
!o = !infc.buffer<tensor<64xf32>, "other", "sram">
module attributes {infc.level = "memory", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "test:scratchpad"} : () -> ()
  module @decode attributes {infc.phase = "decode"} {
    func.func @main(%a: !a, %s: !s, %o: !o) {
      %0 = "infc.prefetch"(%a, %s) {queue = 0 : i64} : (!a, !s) -> !infc.token loc("nobody waits")
      %1 = "infc.prefetch"(%a, %s) {queue = 0 : i64} : (!a, !s) -> !infc.token loc("too early")
      "infc.move"(%s, %a) : (!s, !a) -> ()
      "infc.wait"(%1) : (!infc.token) -> ()
      "infc.move"(%a, %o) : (!a, !o) -> () loc("layouts")
      %2 = "infc.prefetch"(%a, %s) {queue = -1 : i64} : (!a, !s) -> !infc.token loc("queue")
      "infc.wait"(%2) : (!infc.token) -> ()
      return
    }
  }
}
