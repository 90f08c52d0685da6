// Configuration of OHIF for this gateway: a data source for each of its sources that who asks may open. The gateway
// names them in front of this: `const sources = [{name, isDefault}]`.
window.config = {
  routerBasename: '/',
  extensions: [],
  modes: [],
  showStudyList: true,
  showLoadingIndicator: true,
  showWarningMessageForCrossOrigin: false,
  maxNumberOfWebWorkers: 3,
  defaultDataSourceName: sources[0]?.name,
  dataSources: sources.map(({ name, isDefault }) => {
    const root = isDefault ? '/dicomweb' : '/' + encodeURIComponent(name) + '/dicomweb';
    return {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: name,
      configuration: {
        friendlyName: name,
        name,
        qidoRoot: root,
        wadoRoot: root,
        qidoSupportsIncludeField: true,
        supportsReject: false,
        supportsStow: false,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        omitQuotationForMultipartRequest: true,
        singlepart: 'bulkdata,video,pdf',
        bulkDataURI: { enabled: true, relativeResolution: 'studies' },
      },
    };
  }),
};
