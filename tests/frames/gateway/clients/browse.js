// Opens the status page, the study list, a series and a slide in Chromium, scrolls and pans; prints what it saw as one
// JSON line, times in ms.
// node browse.js MODULES BROWSER URL STUDY FRAMES SLIDE FOLDER
const [modules, browser, url, study, frames, slide, folder] = process.argv.slice(2);
const { chromium } = require(modules + '/playwright-core');

(async () => {
  const running = await chromium.launch({
    executablePath: browser,
    args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader'],
  });
  const page = await running.newPage({ viewport: { width: 1280, height: 800 } });
  const seen = { frames: new Set(), faults: [], outside: [] };
  page.on('pageerror', error => seen.faults.push(error.message));
  page.on('request', request => { if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) seen.outside.push(request.url()); });
  page.on('response', response => {
    if (response.status() >= 400) seen.faults.push(response.status() + ' ' + response.url());
    if (response.url().includes('/frames/') && response.url().includes(study)) seen.frames.add(response.url());
  });
  await page.goto(url + '/status');
  await page.waitForFunction(uid => document.body.innerText.includes('serving') && document.querySelectorAll('#studies tr').length > 0, study);
  const status = await page.innerText('body');
  await page.screenshot({ path: folder + '/status.png' });
  await page.goto(url + '/');
  await page.getByText('Study List').first().waitFor({ timeout: 120000 });
  await page.getByText('Test, Viewer').first().waitFor({ timeout: 120000 });
  await page.screenshot({ path: folder + '/list.png' });
  await page.goto(url + '/viewer?StudyInstanceUIDs=' + study);
  for (let second = 0; second < 120 && seen.frames.size < Number(frames); second++) await page.waitForTimeout(1000);
  await page.waitForSelector('canvas', { timeout: 60000 });
  const text = await page.innerText('body');
  await page.screenshot({ path: folder + '/viewer.png' });
  const times = {};
  await page.mouse.move(800, 450);
  let begun = Date.now();
  let end = '';
  for (let round = 0; round < 10 && !end.includes(`(${frames}/${frames})`); round++) {
    for (let wheel = 0; wheel < Number(frames); wheel++) await page.mouse.wheel(0, 100);
    await page.waitForTimeout(100);
    end = await page.innerText('body');
  }
  times.scroll = Date.now() - begun;
  const tiles = new Set();
  page.on('response', response => { if (response.status() === 200 && response.url().includes(slide) && response.url().includes('/frames/')) tiles.add(response.url()); });
  await page.goto(url + '/microscopy?StudyInstanceUIDs=' + slide);
  for (let second = 0; second < 60 && tiles.size === 0; second++) await page.waitForTimeout(1000);
  await page.waitForTimeout(1000);
  const before = tiles.size;
  begun = Date.now();
  await page.mouse.move(800, 450);
  for (let turn = 0; turn < 4; turn++) await page.mouse.wheel(0, -300);
  await page.mouse.down();
  await page.mouse.move(500, 300, { steps: 10 });
  await page.mouse.up();
  for (let wait = 0, last = -1; wait < 40 && last !== tiles.size; wait++) { last = tiles.size; await page.waitForTimeout(500); }
  times.pan = Date.now() - begun;
  await page.screenshot({ path: folder + '/slide.png' });
  console.log(JSON.stringify({ frames: seen.frames.size, faults: seen.faults, outside: seen.outside, status, text, end, times, tiles: [before, tiles.size] }));
  await running.close();
})().catch(error => { console.error(error); process.exit(1); });
