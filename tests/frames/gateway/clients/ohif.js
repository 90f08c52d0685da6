// OHIF: the study list; a series, whose decoded pixels are taken out of its cache; a slide. On request it scrolls and pans.
// Opens a study in a mode, from the list.
const open = async (page, patient, mode) => {
  const row = page.getByText(patient).first();
  await row.waitFor();
  await row.click();
  await page.getByRole('button', { name: mode }).first().click();
};

// Waits until no frame came for a while, and returns how many came.
const settled = async (page, frames) => {
  for (let last = -1; last !== frames.size;) {
    last = frames.size;
    await page.waitForTimeout(300);
  }
  return frames.size;
};

// Counts the colours that a part of the page shows: a viewer without tiles is black.
const colours = async page => {
  const picture = await page.screenshot({ clip: { x: 150, y: 120, width: 300, height: 240 } });
  return page.evaluate(async text => {
    const image = await createImageBitmap(await (await fetch('data:image/png;base64,' + text)).blob());
    const canvas = new OffscreenCanvas(image.width, image.height).getContext('2d');
    canvas.drawImage(image, 0, 0);
    return new Set(new Uint32Array(canvas.getImageData(0, 0, image.width, image.height).data.buffer)).size;
  }, picture.toString('base64'));
};

const scroll = async (page, count) => {
  const begun = Date.now();
  await page.mouse.move(800, 450);
  for (let text = ''; !text.includes(`(${count}/${count})`) && Date.now() - begun < 120000; text = await page.innerText('body')) {
    for (let wheel = 0; wheel < count; wheel++) await page.mouse.wheel(0, 100);
  }
  return Date.now() - begun;
};

const pan = async (page, frames) => {
  await page.locator('[data-cy="dragPan-btn"]').click(); // no tool is chosen at first
  const begun = Date.now();
  for (let drag = 0; drag < 5; drag++) {
    await page.mouse.move(800, 450);
    await page.mouse.down();
    await page.mouse.move(300, 200, { steps: 10 });
    await page.mouse.up();
  }
  await settled(page, frames);
  return Date.now() - begun;
};

module.exports = async (page, { url, count, isTimed }, folder, frames) => {
  // OHIF's tour of the viewer would lie over everything.
  await page.addInitScript(() => { try { localStorage.setItem('shownTours', '["basicViewerTour"]'); } catch { /* a blank page */ } });
  if (isTimed) await page.setViewportSize({ width: 1280, height: 800 }); // as people have it
  const begun = Date.now();
  await page.goto(url + '/');
  await page.getByText('Test, Viewer').first().waitFor();
  await page.screenshot({ path: folder + '/list.png' });
  const listed = Date.now() - begun;
  await open(page, 'Test, Viewer', 'Basic Viewer');
  const images = await page.waitForFunction(count => {
    const cache = window.cornerstone && window.cornerstone.cache;
    const found = cache ? [...cache._imageCache.keys()].map(id => cache.getImage(id)).filter(Boolean) : [];
    return found.length === count && found.map(image => [image.imageId, window.toBase64(image.getPixelData())]);
  }, count);
  const opened = Date.now() - begun - listed;
  await page.getByText(`(1/${count})`).waitFor();
  await page.screenshot({ path: folder + '/series.png' });
  const seen = { pixels: await images.jsonValue(), text: await page.innerText('body'), slices: frames.size, listed, opened };
  if (isTimed) {
    seen.scroll = await scroll(page, count);
    seen.end = await page.innerText('body');
    await page.screenshot({ path: folder + '/scrolled.png' });
  }
  await page.goBack();
  await open(page, 'Slide, Test', 'Microscopy');
  await page.waitForResponse(response => response.url().includes('/frames/'));
  seen.tiles = await settled(page, frames) - seen.slices;
  for (let turn = 0; turn < 100 && await colours(page) < 12; turn++) await page.waitForTimeout(200);
  await page.screenshot({ path: folder + '/slide.png' });
  if (isTimed) {
    seen.pan = await pan(page, frames);
    seen.panned = frames.size - seen.slices - seen.tiles;
    await page.screenshot({ path: folder + '/panned.png' });
  }
  return seen;
};
