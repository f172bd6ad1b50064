// Two programs with limits of their own; attention becomes append and read of a cache; only the
// rows that are wanted reach the head. The window of 4 makes a ring of 4 + 8 - 1 positions, rounded
// up to 16.
// RUN: infc opt %s --pipeline split-phases | filecheck %s

// CHECK: infc.level = "phase"
// CHECK-SAME: capacity = [16]
// CHECK-SAME: kv_dtype = "f16"
// CHECK-SAME: max_tokens = [8, 1]
// CHECK-SAME: windows = [4]
// CHECK-NOT: func.func @model
// CHECK-LABEL: module @prefill attributes {infc.device = @device0, infc.phase = "prefill"}
// CHECK-DAG: "infc.dim"() {max = 8 : i64, {{.*}}sym_name = "t"}
// CHECK-DAG: "infc.dim"() {max = 8 : i64, {{.*}}sym_name = "r"}
// CHECK: func.func @main(
// CHECK-SAME: -> (tensor<?x48xf32, ["r", 48]>, tensor<?xi32, ["r"]>, tensor<?x48xf32, ["r", 48]>, tensor<?x48xi32, ["r", 48]>)
// CHECK: [[X:%[0-9]+]] = "infc.embed"(%arg0
// CHECK-NOT: "infc.attention"
// CHECK: [[C:%[0-9]+]] = "infc.kv_cache"() {index = 0 : i64, infc.layer = 0 : i64} : () -> !infc.kv<"f16", 1 : i64, 64 : i64, 16 : i64, 4 : i64>
// CHECK-NEXT: [[U:%[0-9]+]] = "infc.kv_append"([[C]], [[X]], [[X]], %arg1, %arg2)
// CHECK-NEXT: [[Y:%[0-9]+]] = "infc.kv_attention"([[X]], [[U]], %arg1, %arg2) {heads = 1 : i64, infc.layer = 0 : i64, scale = 1.250000e-01 : f32, softcap = 5.000000e+00 : f32}
// CHECK: [[S:%[0-9]+]] = "infc.select_rows"([[Y]], %arg3)
// CHECK-NEXT: [[L:%[0-9]+]] = "infc.linear"([[S]]
// CHECK-NEXT: [[B:%[0-9]+]] = "infc.argmax"([[L]])
// CHECK-NEXT: [[T:%[0-9]+]]:2 = "infc.top_k"([[L]])
// CHECK-NEXT: return [[L]], [[B]], [[T]]#0, [[T]]#1
// CHECK-LABEL: module @decode
// CHECK: "infc.dim"() {max = 1 : i64
!x = tensor<?x64xf32, ["t", 64]>
!i = tensor<?xi32, ["t"]>
!w = tensor<48x64x!infc.storage<"q8_0">>
!y = tensor<?x48xf32, ["t", 48]>
module attributes {infc.level = "graph", infc.options = {chunk = 8 : i64, max_context = 32 : i64}} {
  "infc.device"() {sym_name = "device0", target = "reference"} : () -> ()
  "infc.dim"() {sym_name = "t", min = 1 : i64, max = 32 : i64} : () -> ()
  func.func @model(%tokens: !i, %positions: !i) -> !y {
    %w = "infc.weight"() {source = "embed"} : () -> !w
    %x = "infc.embed"(%tokens, %w) {scale = 1.0 : f32} : (!i, !w) -> !x
    %a = "infc.attention"(%x, %x, %x, %positions) {infc.layer = 0 : i64, heads = 1 : i64,
        head_dim = 64 : i64, scale = 0.125 : f32, window = 4 : i64, softcap = 5.0 : f32}
        : (!x, !x, !x, !i) -> !x
    %y = "infc.linear"(%a, %w) : (!x, !w) -> !y
    return %y : !y
  }
}
// -----
// Without a window a layer keeps the whole context; float32 weights get a float32 cache; a call of
// several sequences may ask for logits of each.
// RUN: infc opt %s --pipeline split-phases | filecheck %s

// CHECK: capacity = [32]
// CHECK-SAME: kv_dtype = "f32"
// CHECK-SAME: max_logit_rows = [3, 3]
// CHECK-SAME: max_slots = 3
// CHECK: !infc.kv<"f32", 1 : i64, 64 : i64, 32 : i64, 0 : i64>
// CHECK-LABEL: module @decode
// CHECK: "infc.dim"() {max = 3 : i64
!x = tensor<?x64xf32, ["t", 64]>
!i = tensor<?xi32, ["t"]>
!y = tensor<?x48xf32, ["t", 48]>
module attributes {infc.level = "graph",
    infc.options = {chunk = 8 : i64, max_context = 32 : i64, max_batch = 3 : i64, logit_rows = 1 : i64}} {
  "infc.device"() {sym_name = "device0", target = "reference"} : () -> ()
  "infc.dim"() {sym_name = "t", min = 1 : i64, max = 32 : i64} : () -> ()
  func.func @model(%tokens: !i, %positions: !i) -> !y {
    %w = "infc.weight"() {source = "embed"} : () -> tensor<48x64xf32>
    %x = "infc.embed"(%tokens, %w) {scale = 1.0 : f32} : (!i, tensor<48x64xf32>) -> !x
    %a = "infc.attention"(%x, %x, %x, %positions) {infc.layer = 0 : i64, heads = 1 : i64,
        head_dim = 64 : i64, scale = 0.125 : f32, window = 0 : i64, softcap = 0.0 : f32}
        : (!x, !x, !x, !i) -> !x
    %y = "infc.linear"(%a, %w) : (!x, tensor<48x64xf32>) -> !y
    return %y : !y
  }
}
// -----
// RUN: not infc opt %s --pipeline outline-layers | filecheck %s

// CHECK: error[INF2004]: pass outline-layers expects a module at level phase, got graph
// CHECK-NEXT: = hint: the order is outline-layers
module attributes {infc.level = "graph", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "reference"} : () -> ()
}
