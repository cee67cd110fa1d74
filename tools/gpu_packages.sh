# shellcheck shell=bash disable=SC2034
# What tools/gpu_check.sh installs where a module is missing, and tools/gpu_pack.sh brings to a machine without network:
# MODULE:PACKAGES, without what torch and triton bring.
pinned() { sed -nE "s/^(onedl-$1==[^ ]+).*/\1/p" requirements/stack-onedl.txt; }
needed=(
  'cv2:opencv-python-headless<4.13'
  'matplotlib:matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six pillow packaging'
  "mmengine:$(pinned mmengine) addict termcolor"
  'yapf:yapf platformdirs'
  'yaml:pyyaml'
  'safetensors:safetensors'
  'rich:rich markdown-it-py mdurl pygments'
  'pytest:pytest pluggy iniconfig packaging'
  'hypothesis:hypothesis sortedcontainers'
)
# Of the stage detector alone. The toolboxes are sources of Python, mmcv is compiled with what `building` names.
mmcv=$(pinned mmcv)
building=('setuptools<80' wheel ninja psutil)
toolboxes=("mmdet:$(pinned mmdetection)" "mmseg:$(pinned mmsegmentation)")
detectors=(
  'scipy:scipy'
  'pycocotools:pycocotools'
  'terminaltables:terminaltables'
  'shapely:shapely'
  'prettytable:prettytable wcwidth'
  'ftfy:ftfy wcwidth'
  'regex:regex'
  'skimage:scikit-image imageio lazy-loader tifffile'
  'imgaug:imaug'
  'tqdm:tqdm'
)
