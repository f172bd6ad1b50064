// A program becomes one exported function that all threads run, kernels private ones; the best tokens
// are only looked for when the caller wants them. Declarations of weights stay.
// RUN: infc opt %s --pipeline lower-programs | filecheck %s

// CHECK: infc.info = {abi_version = 1 : i64
// CHECK-SAME: decode_max_tokens = 2 : i64
// CHECK-SAME: weight_bytes = 4160 : i64
// CHECK-SAME: infc.level = "machine"
// CHECK-NOT: module @
// CHECK: "infc.packed"()
// CHECK: func.func private @decode_k0_rows(%arg0: !llvm.ptr {{.*}}, %arg5: i64
// CHECK: func.func private @decode_k1_rows(
// CHECK: func.func private @decode_k2_argmax(
// CHECK-LABEL: func.func @infc_decode(%arg0: !llvm.ptr {{.*}}, %arg1: i32 {{.*}}, %arg2: i32 {{.*}}) -> i32
// CHECK: call @infc_barrier(
// CHECK: call @decode_k0_rows(
// CHECK: call @infc_barrier(
// CHECK: call @decode_k1_rows(
// CHECK: call @infc_barrier(
// CHECK: [[WANTED:%[0-9]+]] = arith.andi {{.*}} : i1
// CHECK: scf.if
// CHECK-NEXT: call @decode_k2_argmax(
// CHECK: call @infc_barrier(
// CHECK: llvm.mlir.global external constant @infc_info(
!ids = !infc.buffer<tensor<?xi32, ["t"]>, "rows", "call">
!rows = !infc.buffer<tensor<?xi32, ["r"]>, "rows", "call">
!logits = !infc.buffer<tensor<?x32xf32, ["r", 32]>, "rows", "call">
!x = !infc.buffer<tensor<?x32xf32, ["t", 32]>, "rows", "arena">
!w = !infc.buffer<tensor<32x32xf32>, "n16.f32", "weights">
!frame = !infc.buffer<tensor<0xi8>, "frame", "arena">
!own = !infc.buffer<tensor<0xi8>, "frame", "thread">
!tids = tensor<?xi32, ["t"]>
!trows = tensor<?xi32, ["r"]>
!tx = tensor<?x32xf32, ["t", 32]>
!ty = tensor<?x32xf32, ["r", 32]>
!tw = tensor<32x32xf32>
module attributes {infc.level = "memory", infc.options = {}, infc.weight_bytes = 4160 : i64,
    infc.signature = {vocab_size = 32 : i64, max_top_k = 32 : i64, max_context = 64 : i64, max_slots = 1 : i64,
        max_threads = 4 : i64, max_tokens = [2, 2], max_logit_rows = [2, 2], kv_heads = 1 : i64,
        head_dim = 16 : i64, kv_dtype = "f32", windows = [0], capacity = [64]}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
  "infc.packed"() {sym_name = "w0", source = "embed", offset = 0 : i64, size_bytes = 4160 : i64, layout = "n16.f32", type = !tw} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 2 : i64} : () -> ()
    "infc.dim"() {sym_name = "r", min = 1 : i64, max = 2 : i64} : () -> ()
    func.func @main(%tokens: !ids, %positions: !ids, %slots: !ids, %rows: !rows, %logits: !logits, %best: !rows)
        attributes {infc.plan = {arena = {height_bytes = 256 : i64}, thread = {height_bytes = 0 : i64}}} {
      %arena = "infc.space"() {size_bytes = 256 : i64} : () -> !frame
      %w = "infc.packed_ref"() {packed = "w0"} : () -> !w
      %x = "infc.alloc"(%arena) {offset = 0 : i64, size_bytes = 256 : i64} : (!frame) -> !x
      call @k0_rows(%tokens, %w, %x) : (!ids, !w, !x) -> ()
      "infc.barrier"() : () -> ()
      call @k1_rows(%x, %rows, %logits) : (!x, !rows, !logits) -> ()
      "infc.barrier"() : () -> ()
      call @k2_argmax(%logits, %best) : (!logits, !rows) -> ()
      return
    }
    func.func private @k0_rows(%tokens: !ids, %w: !w, %x: !x) attributes {infc.kernel = "rows", infc.mapping = {partition = "rows"}} {
      %0 = "infc.read"(%tokens) : (!ids) -> !tids
      %1 = "infc.read"(%w) : (!w) -> !tw
      %2 = "infc.embed"(%0, %1) {scale = 1.0 : f32} : (!tids, !tw) -> !tx
      "infc.write"(%2, %x) : (!tx, !x) -> ()
      return
    }
    func.func private @k1_rows(%x: !x, %rows: !rows, %y: !logits) attributes {infc.kernel = "rows", infc.mapping = {partition = "replicate"}} {
      %0 = "infc.read"(%x) : (!x) -> !tx
      %1 = "infc.read"(%rows) : (!rows) -> !trows
      %2 = "infc.select_rows"(%0, %1) : (!tx, !trows) -> !ty
      "infc.write"(%2, %y) : (!ty, !logits) -> ()
      return
    }
    func.func private @k2_argmax(%y: !logits, %best: !rows) attributes {infc.kernel = "argmax", infc.mapping = {partition = "items"}} {
      %0 = "infc.read"(%y) : (!logits) -> !ty
      %1 = "infc.argmax"(%0) : (!ty) -> !trows
      "infc.write"(%1, %best) : (!trows, !rows) -> ()
      return
    }
  }
  module @decode attributes {infc.phase = "decode"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 2 : i64} : () -> ()
    "infc.dim"() {sym_name = "r", min = 1 : i64, max = 2 : i64} : () -> ()
    func.func @main(%tokens: !ids, %positions: !ids, %slots: !ids, %rows: !rows, %logits: !logits, %best: !rows)
        attributes {infc.plan = {arena = {height_bytes = 256 : i64}, thread = {height_bytes = 0 : i64}}} {
      %arena = "infc.space"() {size_bytes = 256 : i64} : () -> !frame
      %w = "infc.packed_ref"() {packed = "w0"} : () -> !w
      %x = "infc.alloc"(%arena) {offset = 0 : i64, size_bytes = 256 : i64} : (!frame) -> !x
      call @k0_rows(%tokens, %w, %x) : (!ids, !w, !x) -> ()
      "infc.barrier"() : () -> ()
      call @k1_rows(%x, %rows, %logits) : (!x, !rows, !logits) -> ()
      "infc.barrier"() : () -> ()
      call @k2_argmax(%logits, %best) : (!logits, !rows) -> ()
      return
    }
    func.func private @k0_rows(%tokens: !ids, %w: !w, %x: !x) attributes {infc.kernel = "rows", infc.mapping = {partition = "rows"}} {
      %0 = "infc.read"(%tokens) : (!ids) -> !tids
      %1 = "infc.read"(%w) : (!w) -> !tw
      %2 = "infc.embed"(%0, %1) {scale = 1.0 : f32} : (!tids, !tw) -> !tx
      "infc.write"(%2, %x) : (!tx, !x) -> ()
      return
    }
    func.func private @k1_rows(%x: !x, %rows: !rows, %y: !logits) attributes {infc.kernel = "rows", infc.mapping = {partition = "replicate"}} {
      %0 = "infc.read"(%x) : (!x) -> !tx
      %1 = "infc.read"(%rows) : (!rows) -> !trows
      %2 = "infc.select_rows"(%0, %1) : (!tx, !trows) -> !ty
      "infc.write"(%2, %y) : (!ty, !logits) -> ()
      return
    }
    func.func private @k2_argmax(%y: !logits, %best: !rows) attributes {infc.kernel = "argmax", infc.mapping = {partition = "items"}} {
      %0 = "infc.read"(%y) : (!logits) -> !ty
      %1 = "infc.argmax"(%0) : (!ty) -> !trows
      "infc.write"(%1, %best) : (!trows, !rows) -> ()
      return
    }
  }
}
// -----
// RUN: not infc opt %s --pipeline lower-programs | filecheck %s

// CHECK: error[INF2004]: pass lower-programs expects a module at level memory, got schedule
module attributes {infc.level = "schedule", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "cpu:x86-64-v3"} : () -> ()
}
