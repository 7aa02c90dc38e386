"""Classes of operators, by what graphs and runtimes call them.

An operator's own name is looked up in a table. A fused kernel has a name of its runtime's making
(``sm80_xmma_gemm_...``, ``__myl_FcMulSigMul``, ``Conv + Relu``): the first class, in the order of
``_FUSED``, that has a word in it counts, since that is where such a kernel spends its time.
"""

from __future__ import annotations

import re

CLASSES = (
    "attention",
    "scan",
    "linear",
    "convolution",
    "normalisation",
    "activation",
    "softmax",
    "embedding",
    "copy",
    "quantize",
    "elementwise",
    "other",
)

#: Operators of ONNX, ONNX Runtime, OpenVINO and PyTorch, in lower case and without ``aten::``.
_OPERATORS = {
    "attention": """
        attention multiheadattention groupqueryattention qattention packedattention
        packedmultiheadattention decodermaskedmultiheadattention decodermaskedselfattention
        longformerattention sparseattention pagedattention scaleddotproductattention
        scaleddotproductattentionwithkvcache scaled_dot_product_attention linearattention mha
        causal_attention
    """,
    "scan": """
        scan loop tensoriterator lstm gru rnn lstmcell grucell rnncell lstmsequence grusequence
        rnnsequence dynamicquantizelstm mamba_scan ssd linear_scan lmu gated_delta fire
    """,
    "linear": """
        matmul gemm fusedmatmul fusedgemm einsum fullyconnected matmulinteger
        matmulintegertofloat dynamicquantizematmul qlinearmatmul qgemm matmulnbits gemmfastgelu
        llmmlp qkvprojection moe qmoe linear addmm mm bmm baddbmm addbmm
    """,
    "convolution": """
        conv convtranspose convinteger qlinearconv fusedconv nhwcconv nhwcfusedconv deformconv
        causalconvwithstate convolution groupconvolution deconvolution deformableconvolution
        conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    """,
    "normalisation": """
        layernormalization simplifiedlayernormalization skiplayernormalization
        skipsimplifiedlayernormalization embedlayernormalization rmsnormalization
        groupnormalization groupnorm skipgroupnorm instancenormalization batchnormalization
        lpnormalization meanvariancenormalization lrn mvn rms normalizel2 layer_norm rms_norm
        group_norm batch_norm instance_norm native_layer_norm
    """,
    "activation": """
        relu leakyrelu prelu thresholdedrelu elu selu celu gelu fastgelu quickgelu biasgelu silu
        swish swishcpu mish hswish hsigmoid sigmoid hardsigmoid hardswish hardtanh softplus
        softsign tanh glu relu6 leaky_relu log_sigmoid
    """,
    "softmax": """
        softmax logsoftmax biassoftmax qlinearsoftmax hardmax log_softmax _softmax
    """,
    "embedding": """
        embedding embedding_bag gatherblockquantized embeddingbagoffsets embeddingbagpackedsum
    """,
    "copy": """
        reshape flatten squeeze unsqueeze transpose concat concatenation split variadicsplit
        slice stridedslice gather gathernd gatherelements scatter scatternd scatterelements
        scatterupdate scatterelementsupdate scatterndupdate tensorscatter pad expand tile
        identity cast castlike convert shape shapeof size range constant constantofshape
        reorderinput reorderoutput reorder memcpytohost memcpyfromhost depthtospace spacetodepth
        broadcast reversesequence roll readvalue assign memoryinput memoryoutput view contiguous
        clone copy_ to _to_copy cat stack unbind chunk split_with_sizes select index
        index_select narrow unfold expand_as repeat flip t permute as_strided repeat_interleave
        one_hot onehot new_zeros zeros zeros_like full arange lift_fresh pixel_shuffle
        pixel_unshuffle latest
    """,
    "quantize": """
        quantizelinear dequantizelinear dynamicquantizelinear fakequantize quantize dequantize
        fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
    """,
    "elementwise": """
        add sub mul div multiply subtract divide mod pow power sqrt rsqrt reciprocal exp log abs
        neg negative sign erf floor ceil round clip clamp min max minimum maximum mean sum
        cumsum where equal notequal greater greaterorequal greaterequal less lessorequal
        lessequal and or not xor logicaland logicalor logicalnot isnan isinf sin cos tan
        reducemean reducesum reducemax reducemin reduceprod reducel1 reducel2 reducesumsquare
        reducelogsumexp reduce argmax argmin topk trilu rotaryembedding rope globalaveragepool
        averagepool maxpool globalmaxpool avgpool pooling eltwise subgraph math
        squareddifference add_ mul_ sub_ div_ masked_fill adaptive_avg_pool2d max_pool2d
        avg_pool2d amax amin square any all eq ne lt le gt ge triu tril
    """,
}
_CLASS = {name: kind for kind, names in _OPERATORS.items() for name in names.split()}

#: What is in the names of fused kernels, in lower case; the first that is found counts.
_FUSED = (
    ("attention", r"fmha|mha|flash|attention|sdpa"),
    ("scan", r"mamba|selective|(^|_)scan|_ssd|gated_delta|lstm|(^|_)gru|(^|_)rnn|while|_loop"),
    ("copy", r"reformat|^reorder|copynode|memcpy|memset"),
    ("convolution", r"conv(?!ert)|fprop|implicit_gemm|winograd|dgrad"),
    ("linear", r"gemm|gemv|matmul|linear(?!ize)|fullyconnected|xmma|cutlass|einsum|addmm|(^|_)fc"),
    ("softmax", r"softmax|max\w*sub\w*exp"),
    ("normalisation", r"norm|mean\w*(sub|sqrt|sqr)|(^|_)mvn|(^|_)rms"),
    ("quantize", r"quantize|(^|_)q?dq"),
    ("embedding", r"embed"),
    ("activation", r"gelu|silu|relu|swish|sigmoid|tanh|softplus|mish|activation|mulsig|sigmul|erf"),
    ("elementwise", r"pwn|eltwise|elementwise|pointwise|add|mul|sub|div|pow|exp|reduce|pool|mean"),
    ("copy", r"copy|cast|convert|transpose|tran|resh|slic|concat|split|permute|shuffle|gather|pad"),
)
_FUSED_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _FUSED)


def listed(operator: str) -> str:
    """The class of an operator that is known by its own name, else ``""``."""
    return _CLASS.get(operator.rpartition("::")[2].lower(), "")


def class_of(operator: str, name: str = "") -> str:
    """The class of an operator, or of a fused kernel by its operator's or its own name.

    >>> class_of("FusedMatMul"), class_of("aten::addmm"), class_of("edgekit::mamba_scan")
    ('linear', 'linear', 'scan')
    >>> class_of("sm80_xmma_fprop_implicit_gemm_f16"), class_of("", "_gemm_mha_v2_myl0_7")
    ('convolution', 'attention')
    >>> class_of("Frobnicate")
    'other'
    """
    if known := listed(operator):
        return known
    for text in (operator.rpartition("::")[2].lower(), name.lower()):
        for kind, pattern in _FUSED_PATTERNS:
            if pattern.search(text):
                return kind
    return "other"
