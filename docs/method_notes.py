"""Words and equations of the method pages: affinities, layers, losses, algorithms, notes."""

AFFINITIES = {
    "ncut": (
        "Products of the patch features F (N×D), the positive ones kept, divided by the largest "
        "(DeepCut, Eq. 7; with a threshold τ as in UnSegGNet and TokenCut):\n\n"
        r"$$W_{ij} = \frac{f_i^\top f_j \,[f_i^\top f_j > \tau]}{\max_{kl} f_k^\top f_l}$$"
    ),
    "cc": (
        "Signed: products of the features minus a share of the largest (DeepCut, Eq. 9). Edges of "
        "the graph layers are the positive entries; the negative ones enter the loss alone:\n\n"
        r"$$W_{ij} = f_i^\top f_j - \frac{1}{\alpha}\max_{kl} f_k^\top f_l$$"
    ),
    "dmon": (
        "An edge where the cosine reaches τ (UnSegGNet):\n\n"
        r"$$W_{ij} = [\cos(f_i, f_j) \ge \tau]$$"
    ),
    "cosine": (
        "The cosine where it reaches τ, divided by the largest (UnSegMedGAT, Eq. 1):\n\n"
        r"$$W_{ij} = \frac{\cos(f_i, f_j)\,[\cos(f_i, f_j) \ge \tau]}{\max_{kl} W_{kl}}$$"
    ),
    "colour": (
        "Similar mean colours of regions (or pixels) that touch (scikit-image's "
        "`rag_mean_color`):\n\n"
        r"$$W_{ij} = \exp\left(-\lVert c_i - c_j \rVert^2 / \sigma\right)$$"
    ),
}

LAYERS = {
    "gcn": (
        "Graph convolution (Kipf and Welling, ICLR 2017, Eq. 2), self-loops where the diagonal is "
        "0:\n\n"
        r"$$H = \hat{A} X \Theta, \qquad \hat{A} = D^{-1/2} A D^{-1/2}$$"
    ),
    "gat": (
        "Graph attention (Veličković et al., ICLR 2018) with the edge weight as a feature:\n\n"
        r"$$e_{ij} = \mathrm{LeakyReLU}_{0.2}\left(a_s^\top \Theta x_j + a_d^\top \Theta x_i + "
        r"a_e^\top \Theta_e w_{ij}\right), \qquad "
        r"h_i = \sum_j \mathrm{softmax}_j(e_{ij})\,\Theta x_j$$"
    ),
    "arma": (
        "Auto-regressive moving average filters (Bianchi et al., TPAMI 2021, Eq. 10), averaged "
        "over parallel stacks:\n\n"
        r"$$X^{(t+1)} = \sigma\left(\hat{L} X^{(t)} W_t + X^{(0)} V_t + b_t\right), \qquad "
        r"\hat{L} = D^{-1/2} A D^{-1/2}$$"
    ),
}

LOSSES = {
    "ncut": (
        "Relaxed normalised cut with an orthogonality term (MinCutPool, Eq. 9; DeepCut, Eq. 6). S "
        "(N×K) holds the soft assignments:\n\n"
        r"$$\mathcal{L} = -\frac{\mathrm{Tr}(S^\top W S)}{\mathrm{Tr}(S^\top D S)} + "
        r"\left\lVert \frac{S^\top S}{\lVert S^\top S \rVert_F} - \frac{I_K}{\sqrt{K}} "
        r"\right\rVert_F$$"
    ),
    "cc": (
        "Correlation clustering (DeepCut, Eq. 8). The number of clusters is found, up to K:\n\n"
        r"$$\mathcal{L} = -\sum_{ij} W_{ij} (S S^\top)_{ij}$$"
    ),
    "modularity": (
        "Negative modularity with a collapse term (DMoN, Eq. 6):\n\n"
        r"$$\mathcal{L} = -\frac{1}{2m}\mathrm{Tr}(S^\top B S) + \frac{\sqrt{K}}{N}"
        r"\left\lVert \sum_i S_i \right\rVert_F - 1, \qquad B = W - \frac{d d^\top}{2m}$$"
    ),
}

ALGORITHMS = {
    "kmeans": "k-means on the patch features, several starts, the best kept. No graph.",
    "deep-spectral": (
        "The second eigenvector of the normalised Laplacian, cut at 0; a vote of the border "
        "decides which side is background:\n\n"
        r"$$(D - W)\, y = \lambda D y$$"
    ),
    "tokencut": (
        "The second generalised eigenvector of the graph with weights 1 and ε, cut at its mean. "
        "The patch with the largest absolute value is the seed of the object, whose connected "
        "component is the mask:\n\n"
        r"$$(D - W)\, y = \lambda D y$$"
    ),
    "spectral-ncut": (
        "Classical normalised cuts (Shi and Malik, 2000): the second generalised eigenvector over "
        "superpixels, cut where the normalised cut is smallest."
    ),
}

NOTES = {
    "deepcut": (
        "One image at a time: a GCN with 64 units assigns each patch to one of two clusters. The "
        "cluster that holds most corners is the background, and the largest piece of the other is "
        "the object."
    ),
    "deepcut-cc": "As `deepcut`, but the number of clusters is found: up to ten parts.",
    "collective": (
        "This library's own method for a set of images of one kind. It is fitted once on the whole "
        "set, without any mask, and then segments a new image in one pass of the transformer. "
        "Three cues per image (unlikeness to the border as a whole and to its nearest parts, "
        "and the second eigenvector of the normalised cut) are regressed on the patch features of "
        "the whole set by one linear scorer. What is left is what the features have in common with "
        "being foreground. What it is sure of teaches a small convolution, which sees the "
        "neighbours of a patch as well; two copies learn from halves of the set until their masks "
        "agree most, and the mean of all is the score. Images keep their shape (`fit`), and each "
        "has a threshold of its own. "
        "Large images may be cut into tiles (`tile`). The guided filter moves "
        "the edges of the soft map to those of the image."
    ),
    "unsegmedgat-c": (
        "A shared head is trained on all images of the set first. It can collapse where the graph "
        "is nearly complete: see `tau`."
    ),
    "slic-ncut": "Nodes are SLIC superpixels with colour and position; no transformer is needed.",
    "pixel-ncut": "Nodes are pixels of an image reduced four times. Slow: 500 epochs per image.",
    "cc-gcn": (
        "The course project propagates over unnormalised sums, which does not learn on these "
        "features. The default normalises the positive affinities."
    ),
}
