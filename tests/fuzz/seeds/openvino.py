from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tests.fuzz.packing import Files

_NEW = """<?xml version="1.0"?>
<net name="m" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1,1,8,8" element_type="f32"/>
<output><port id="0" precision="FP32"><dim>1</dim><dim>1</dim><dim>8</dim><dim>8</dim></port>
</output></layer>
<layer id="1" name="w" type="Const" version="opset1">
<data element_type="%s" shape="2,1,3,3" offset="0" size="%d"/>
<output><port id="0"><dim>2</dim><dim>1</dim><dim>3</dim><dim>3</dim></port></output></layer>
<layer id="2" name="f" type="Convert" version="opset1"><data destination_type="f32"/>
<input><port id="0"/></input><output><port id="1"/></output></layer>
<layer id="3" name="c" type="Convolution" version="opset1">
<data strides="1,1" dilations="1,1" pads_begin="1,1" pads_end="1,1" auto_pad="explicit"/>
<input><port id="0"/><port id="1"/></input><output><port id="2"/></output></layer>
</layers><edges>
<edge from-layer="0" from-port="0" to-layer="3" to-port="0"/>
<edge from-layer="1" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="2" from-port="1" to-layer="3" to-port="1"/>
</edges></net>
"""
_OLD = """<net name="m" version="5" batch="1"><layers>
<layer id="0" name="x" precision="FP32" type="Input"><output><port id="0">
<dim>1</dim><dim>1</dim><dim>8</dim><dim>8</dim></port></output></layer>
<layer id="1" name="c" precision="FP32" type="Convolution">
<data dilations="1,1" group="1" kernel="3,3" output="2" pads_begin="0,0" strides="1,1"/>
<input><port id="0"><dim>1</dim><dim>1</dim><dim>8</dim><dim>8</dim></port></input>
<output><port id="3"><dim>1</dim><dim>2</dim><dim>6</dim><dim>6</dim></port></output>
<blobs><weights offset="0" size="72"/><biases offset="72" size="8"/></blobs></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges></net>
"""


def seeds(folder: Path) -> list[Files]:
    numbers = np.arange(20, dtype="<f4").tobytes()
    cases = [(_NEW % ("f32", 72), numbers[:72]), (_NEW % ("i8", 18), bytes(range(18)))]
    cases.append((_OLD, numbers))
    return [{"m.xml": text.encode(), "m.bin": data} for text, data in cases]
