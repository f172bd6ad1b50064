// Two layers that differ in their weights only share a function; the third, with another norm, gets
// one of its own. Weights stay in main and are passed in.
// RUN: infc opt %s --pipeline outline-layers | filecheck %s

// CHECK-LABEL: func.func private @layer0(
// CHECK-SAME: attributes {infc.layer_class = 0 : i64}
// CHECK-NEXT: [[N:%[0-9]+]] = "infc.rms_norm"(%arg0, %arg1) {eps = 9.99999997E-7 : f32, offset = 0.000000e+00 : f32}
// CHECK-NEXT: "infc.add"(%arg0, [[N]]) :
// CHECK-LABEL: func.func private @layer1(
// CHECK-SAME: attributes {infc.layer_class = 1 : i64}
// CHECK-NEXT: "infc.rms_norm"{{.*}}offset = 1.000000e+00
// CHECK-NOT: @layer2
// CHECK-LABEL: func.func @main(
// CHECK: [[G0:%[0-9]+]] = "infc.weight"() {infc.layer = 0 : i64, source = "g0"}
// CHECK-NEXT: [[A:%[0-9]+]] = call @layer0(%arg0, [[G0]]) {infc.layer = 0 : i64}
// CHECK: [[G1:%[0-9]+]] = "infc.weight"() {infc.layer = 1 : i64, source = "g1"}
// CHECK-NEXT: [[B:%[0-9]+]] = call @layer0([[A]], [[G1]]) {infc.layer = 1 : i64}
// CHECK: [[C:%[0-9]+]] = call @layer1([[B]]
// CHECK-NEXT: return [[C]]
!x = tensor<?x64xf32, ["t", 64]>
!g = tensor<64xf32>
module attributes {infc.level = "phase", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "reference"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !x) -> !x {
      %g0 = "infc.weight"() {infc.layer = 0 : i64, source = "g0"} : () -> !g
      %n0 = "infc.rms_norm"(%x, %g0) {infc.layer = 0 : i64, eps = 1.0e-6 : f32, offset = 0.0 : f32} : (!x, !g) -> !x
      %y0 = "infc.add"(%x, %n0) {infc.layer = 0 : i64} : (!x, !x) -> !x
      %g1 = "infc.weight"() {infc.layer = 1 : i64, source = "g1"} : () -> !g
      %n1 = "infc.rms_norm"(%y0, %g1) {infc.layer = 1 : i64, eps = 1.0e-6 : f32, offset = 0.0 : f32} : (!x, !g) -> !x
      %y1 = "infc.add"(%y0, %n1) {infc.layer = 1 : i64} : (!x, !x) -> !x
      %g2 = "infc.weight"() {infc.layer = 2 : i64, source = "g2"} : () -> !g
      %n2 = "infc.rms_norm"(%y1, %g2) {infc.layer = 2 : i64, eps = 1.0e-6 : f32, offset = 1.0 : f32} : (!x, !g) -> !x
      %y2 = "infc.add"(%y1, %n2) {infc.layer = 2 : i64} : (!x, !x) -> !x
      return %y2 : !x
    }
  }
}
// -----
// Operations of no layer stay where they are.
// RUN: infc opt %s --pipeline outline-layers | filecheck %s

// CHECK-NOT: @layer0
// CHECK: "infc.softcap"(%arg0)
!x = tensor<?x64xf32, ["t", 64]>
module attributes {infc.level = "phase", infc.options = {}} {
  "infc.device"() {sym_name = "device0", target = "reference"} : () -> ()
  module @prefill attributes {infc.phase = "prefill"} {
    "infc.dim"() {sym_name = "t", min = 1 : i64, max = 8 : i64} : () -> ()
    func.func @main(%x: !x) -> !x {
      %y = "infc.softcap"(%x) {cap = 1.0 : f32} : (!x) -> !x
      return %y : !x
    }
  }
}
