// Equal operations become one; what nothing uses goes, with what only it used.
// RUN: infc opt %s --pipeline canonicalize | filecheck %s

// CHECK: infc.pass = "canonicalize"
// CHECK-LABEL: func.func @model(
// CHECK: [[G:%[0-9]+]] = "infc.weight"() {source = "gain"}
// CHECK-NEXT: [[N:%[0-9]+]] = "infc.rms_norm"(%arg0, [[G]])
// CHECK-NEXT: [[Y:%[0-9]+]] = "infc.add"([[N]], [[N]])
// CHECK-NEXT: return [[Y]]
// CHECK-NOT: unused
!x = tensor<?x64xf32, ["t", 64]>
module attributes {infc.level = "graph", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "reference"} : () -> ()
  "infc.dim"() {sym_name = "t", min = 1 : i64, max = 32 : i64} : () -> ()
  func.func @model(%x: !x) -> !x {
    %g0 = "infc.weight"() {source = "gain"} : () -> tensor<64xf32>
    %n0 = "infc.rms_norm"(%x, %g0) {eps = 1.0e-6 : f32, offset = 0.0 : f32} : (!x, tensor<64xf32>) -> !x
    %g1 = "infc.weight"() {source = "gain"} : () -> tensor<64xf32>
    %n1 = "infc.rms_norm"(%x, %g1) {eps = 1.0e-6 : f32, offset = 0.0 : f32} : (!x, tensor<64xf32>) -> !x
    %y = "infc.add"(%n0, %n1) : (!x, !x) -> !x
    %unused = "infc.weight"() {source = "unused"} : () -> tensor<64xf32>
    %z = "infc.rms_norm"(%x, %unused) {eps = 1.0e-6 : f32, offset = 0.0 : f32} : (!x, tensor<64xf32>) -> !x
    return %y : !x
  }
}
// -----
// What differs in an attribute, a type or the order of operands stays: there is no algebra here.
// RUN: infc opt %s --pipeline canonicalize | filecheck %s

// CHECK-LABEL: func.func @model(
// CHECK: "infc.softcap"(%arg0) {cap = 1.000000e+00 : f32}
// CHECK-NEXT: "infc.softcap"(%arg0) {cap = 2.000000e+00 : f32}
// CHECK-NEXT: "infc.add"(%0, %1)
// CHECK-NEXT: "infc.add"(%1, %0)
// CHECK-NEXT: "infc.mul"(%2, %3)
!x = tensor<?x64xf32, ["t", 64]>
module attributes {infc.level = "graph", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "reference"} : () -> ()
  "infc.dim"() {sym_name = "t", min = 1 : i64, max = 32 : i64} : () -> ()
  func.func @model(%x: !x) -> !x {
    %a = "infc.softcap"(%x) {cap = 1.0 : f32} : (!x) -> !x
    %b = "infc.softcap"(%x) {cap = 2.0 : f32} : (!x) -> !x
    %c = "infc.add"(%a, %b) : (!x, !x) -> !x
    %d = "infc.add"(%b, %a) : (!x, !x) -> !x
    %e = "infc.mul"(%c, %d) : (!x, !x) -> !x
    return %e : !x
  }
}
// -----
// RUN: not infc opt %s --pipeline canonicalize | filecheck %s

// CHECK: error[INF2003]: not legal at level graph: 1 operation
// CHECK-NEXT: - infc.quantize is not legal at level graph (loc("layers.0.q"))
!x = tensor<?x64xf32, ["t", 64]>
!a = tensor<?x64x!infc.storage<"a8">, ["t", 64]>
module attributes {infc.level = "graph", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "reference"} : () -> ()
  "infc.dim"() {sym_name = "t", min = 1 : i64, max = 32 : i64} : () -> ()
  func.func @model(%x: !x) -> !a {
    %a = "infc.quantize"(%x) : (!x) -> !a loc("layers.0.q")
    return %a : !a
  }
}
