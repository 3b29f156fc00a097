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
    "kmeans": "k-means on the patch features, the best of several starts. No graph.",
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

COLLECTIVE = (
    "**Frame.** The patch features of all images are reduced to their principal directions "
    "and clustered. A cluster that lies mostly along the border of the images, such as the "
    "black rim of an endoscopy, is frame: it is background and takes no further part.\n\n"
    "**Three cues.** Each patch of an image gets three values, none of which needs a label: "
    "how unlike the border it is as a whole, how unlike the parts of the border that are most"
    " like it, and its entry in the second eigenvector of the normalised cut of the image's "
    "graph of cosines, thresholded at τ:\n\n"
    r"$$u_i = -\frac{1}{|B|}\sum_{b \in B} \cos(f_i, f_b), \qquad "
    r"a_i = -\frac{1}{5}\sum_{b \in N_5(i)} \cos(f_i, f_b)$$"
    "\n\n"
    r"$$(D - W)\, c = \lambda D c$$"
    "\n\n"
    "**Ridge regression.** The sum of the standardised cues is regressed on the features of "
    "all patches of the set. What many images agree on survives, and what is odd in one image"
    " does not. The scorer then learns from its own labels, twice:\n\n"
    r"$$\min_w \sum_i \left(w^\top x_i - t_i\right)^2 + \rho \lVert w \rVert^2$$"
    "\n\n"
    "**Convolution.** What the linear scorer is sure of teaches a small 3 × 3 convolution, "
    "which also sees the neighbours of a patch. Two copies learn from halves of the set until"
    " their masks agree most. The score of a patch is the mean of the linear scorer and the "
    "convolution.\n\n"
    "**Mask.** Each image has its own threshold (Otsu's), and the guided filter moves the "
    "edges of the soft map to those of the image. With the model that ships, each image teaches "
    "itself before: patches that are surely inside or outside tell the others. Images keep "
    "their aspect ratio (`resize`), and large ones may be cut into tiles (`tile`)."
)
"""How `collective` works; it has no loss and no epochs."""

NOTES = {
    "deepcut": (
        "One image at a time: a GCN with 64 units assigns each patch to one of two clusters. The "
        "cluster that holds most corners is the background, and the largest piece of the other is "
        "the object."
    ),
    "deepcut-cc": "As `deepcut`, but the number of clusters is found: up to ten parts.",
    "collective": (
        "This library's own method for a set of images of one kind. It is fitted once on the "
        "whole set, without masks, and "
        "then segments a new image in one pass of the transformer. No graph network is "
        "optimised per image."
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
